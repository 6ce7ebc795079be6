"""The built-in toy world: people, things and places, what they are like, and a seeded generator of texts about them."""
