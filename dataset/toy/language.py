"""How the toy world is put into words."""

from __future__ import annotations

import random

from dataset.toy.world import Fact, Scene

NEGATED = 0.2  # share of facts that are told by denying the opposite: "not cold" for hot


def say(fact: Fact, rng: random.Random, negated: float = NEGATED) -> str:
    """One of the ways to tell a fact: "hot", "warm", or, with a share of `negated`, "not cold", "not cool"."""
    negate = rng.random() < negated
    word = rng.choice(fact.respect.yes if fact.holds != negate else fact.respect.no)
    return f"not {word}" if negate else word


def plainly(fact: Fact) -> str:
    """The plainest way to tell a fact."""
    return (fact.respect.yes if fact.holds else fact.respect.no)[0]


def listed(parts: list[str]) -> str:
    """`a`, `a and b`, or `a, b and c`."""
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else parts[0]


def sentence(text: str, end: str = ".") -> str:
    return text[0].upper() + text[1:] + end


def describe(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """All facts of a scene in one sentence."""
    return sentence(f"{scene.noun} was {listed([say(fact, rng, negated) for fact in scene.facts])}")


def summarise(scene: Scene) -> str:
    """The same in the plainest words."""
    return sentence(f"{scene.noun} was {listed([plainly(fact) for fact in scene.facts])}")


def opposite(fact: Fact) -> Fact:
    return Fact(fact.respect, not fact.holds)
