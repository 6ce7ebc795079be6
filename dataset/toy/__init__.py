"""The built-in toy world: people, things and places, their traits, and a seeded generator of texts on them."""
