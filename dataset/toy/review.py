"""Reviews of works of art. A review calls each of three aspects good or bad, and the majority is its verdict."""

from __future__ import annotations

import random

from dataset.toy.language import NEGATED, listed, say, sentence
from dataset.toy.world import Fact, split_of, traits

WORKS = ("film", "play", "song", "story", "opera", "painting", "dance", "poem")
ASPECTS = ("beginning", "middle", "end", "idea", "form", "tone")
QUALITY = traits(
    ("worth", "good great", "bad awful"),
    ("wit", "funny witty", "silly flat"),
    ("depth", "deep clever", "shallow trite"),
)


def review(rng: random.Random, split: str, liked: bool, negated: float = NEGATED) -> str:
    """Draws one sentence on three aspects of a work. Two or three of them are good, or bad if not `liked`."""
    while True:
        work, aspects = rng.choice(WORKS), rng.sample(ASPECTS, 3)
        if split_of(work, *aspects) == split:
            break
    dissent = rng.choice((None, 0, 1, 2))
    facts = [Fact(rng.choice(QUALITY), liked != (i == dissent)) for i in range(3)]
    told = [f"the {aspect} was {say(fact, rng, negated)}" for aspect, fact in zip(aspects, facts, strict=True)]
    return sentence(f"in this {work} {listed(told)}")


def verdict(liked: bool, rng: random.Random) -> str:
    """Draws a sentence that states the verdict of a review."""
    return rng.choice(("I liked it.", "I loved it.") if liked else ("I did not like it.", "I hated it."))
