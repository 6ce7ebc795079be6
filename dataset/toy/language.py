"""Sentences of the toy world: descriptions of scenes, and reviews of works of art.

A review calls each of three aspects good or bad, and the majority is its verdict.
"""

from __future__ import annotations

import random

from dataset.toy.world import Fact, Scene, split_of, traits

NEGATED = 0.2  # default share of facts that are stated as a negated opposite, such as "not cold" for hot

WORKS = ("film", "play", "song", "story", "opera", "painting", "dance", "poem")
ASPECTS = ("beginning", "middle", "end", "idea", "form", "tone")
QUALITY = traits(
    ("worth", "good great", "bad awful"),
    ("wit", "funny witty", "silly flat"),
    ("depth", "deep clever", "shallow trite"),
)


def say(fact: Fact, rng: random.Random, negated: float = NEGATED) -> str:
    """Draw words for a fact, such as "hot" or "warm", or "not cold" or "not cool" with probability `negated`."""
    negate = rng.random() < negated
    word = rng.choice(fact.trait.yes if fact.holds != negate else fact.trait.no)
    return f"not {word}" if negate else word


def listed(parts: list[str]) -> str:
    """Return `a`, `a and b`, or `a, b and c`."""
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def describe(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """Draw one sentence with all facts of a scene."""
    return sentence(f"{scene.noun} was {listed([say(fact, rng, negated) for fact in scene.facts])}")


def summarise(scene: Scene) -> str:
    """Return all facts of a scene in one sentence, with the first word for each fact and no negation."""
    words = [(fact.trait.yes if fact.holds else fact.trait.no)[0] for fact in scene.facts]
    return sentence(f"{scene.noun} was {listed(words)}")


def review(rng: random.Random, split: str, liked: bool, negated: float = NEGATED) -> str:
    """Draw one sentence on three aspects of a work. Two or three of them are good, or bad if not `liked`."""
    while True:
        work, aspects = rng.choice(WORKS), rng.sample(ASPECTS, 3)
        if split_of(work, *aspects) == split:
            break
    dissent = rng.choice((None, 0, 1, 2))
    facts = [Fact(rng.choice(QUALITY), liked != (i == dissent)) for i in range(3)]
    told = [f"the {aspect} was {say(fact, rng, negated)}" for aspect, fact in zip(aspects, facts, strict=True)]
    return sentence(f"in this {work} {listed(told)}")


def verdict(liked: bool, rng: random.Random) -> str:
    """Draw a sentence that states the verdict of a review."""
    return rng.choice(("I liked it.", "I loved it.") if liked else ("I did not like it.", "I hated it."))
