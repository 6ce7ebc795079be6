"""Plain text of the toy world, to pretrain a language model on: no task's rows, no task's labels.

A scene is told, and goes on with the same in other words, questions with their answers, and what it comes to in short.
"""

from __future__ import annotations

import random

from dataset.toy.language import NEGATED, describe, opposite, say, sentence, summarise
from dataset.toy.review import review, verdict
from dataset.toy.world import Scene, draw_scene

REVIEWS = 0.15  # share of documents


def remark(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """One of the facts again."""
    who = rng.choice((scene.pronoun, f"so {scene.pronoun}", scene.noun))
    return sentence(f"{who} was {say(rng.choice(scene.facts), rng, negated)}")


def question(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """A yes-or-no question and its answer."""
    fact, asked_right = rng.choice(scene.facts), rng.random() < 0.5
    asked = say(fact if asked_right else opposite(fact), rng, negated)
    return f"{sentence(f'was {scene.pronoun} {asked}', '?')} {'Yes' if asked_right else 'No'}."


def in_short(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """All of it in the plainest words, in which nothing is negated."""
    return f"In short: {summarise(scene)}"


FOLLOW_UPS = (remark, question, in_short)
SHARES = (3, 5, 1)


def tell(scene: Scene, rng: random.Random, negated: float) -> str:
    """A scene and what follows from it."""
    later = rng.choices(FOLLOW_UPS, SHARES, k=rng.randint(4, 6))
    return " ".join([describe(scene, rng, negated), *(follow_up(scene, rng, negated) for follow_up in later)])


def document(rng: random.Random, split: str, negated: float = NEGATED) -> str:
    """One document about what `split` may tell of.

    Args:
        rng: draws it.
        split: of the toy world.
        negated: share of facts that are told by denying the opposite.
    """
    if rng.random() < REVIEWS:
        liked = rng.random() < 0.5
        return f"{review(rng, split, liked, negated)} {verdict(liked, rng)}"
    return tell(draw_scene(rng, split), rng, negated)
