"""Sentences about the facts of the toy world."""

from __future__ import annotations

import random

from dataset.toy.world import Fact, Scene

NEGATED = 0.2  # default share of facts that are stated as a negated opposite, such as "not cold" for hot


def say(fact: Fact, rng: random.Random, negated: float = NEGATED) -> str:
    """Draws words for a fact, such as "hot" or "warm", or "not cold" or "not cool" with probability `negated`."""
    negate = rng.random() < negated
    word = rng.choice(fact.trait.yes if fact.holds != negate else fact.trait.no)
    return f"not {word}" if negate else word


def listed(parts: list[str]) -> str:
    """Returns `a`, `a and b`, or `a, b and c`."""
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def describe(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """Draws one sentence with all facts of a scene."""
    return sentence(f"{scene.noun} was {listed([say(fact, rng, negated) for fact in scene.facts])}")


def summarise(scene: Scene) -> str:
    """Returns all facts of a scene in one sentence, with the first word for each fact and no negation."""
    words = [(fact.trait.yes if fact.holds else fact.trait.no)[0] for fact in scene.facts]
    return sentence(f"{scene.noun} was {listed(words)}")
