"""Plain text of the toy world, to pretrain a language model on. It has neither the rows nor the labels of a task.

A document describes a scene, then restates its facts, asks and answers questions about them, or summarises them.
"""

from __future__ import annotations

import random

from dataset.toy.language import NEGATED, describe, review, say, sentence, summarise, verdict
from dataset.toy.world import Scene, draw_scene

REVIEWS = 0.15  # share of documents


def remark(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """Draw a sentence that restates one fact."""
    who = rng.choice((scene.pronoun, f"so {scene.pronoun}", scene.noun))
    return sentence(f"{who} was {say(rng.choice(scene.facts), rng, negated)}")


def question(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """Draw a yes-or-no question with its answer."""
    fact, answer = rng.choice(scene.facts), rng.random() < 0.5
    asked = say(fact if answer else fact.opposite, rng, negated)
    return f"{sentence(f'was {scene.pronoun} {asked}', '?')} {'Yes' if answer else 'No'}."


def in_short(scene: Scene, rng: random.Random, negated: float = NEGATED) -> str:
    """Return the summary of a scene. The random numbers are not used."""
    return f"In short: {summarise(scene)}"


FOLLOW_UPS = (remark, question, in_short)
SHARES = (3, 5, 1)


def document(rng: random.Random, split: str, negated: float = NEGATED) -> str:
    """Draw one document of `split`: a review, or the description of a scene with four to six follow-ups.

    `negated` is the share of facts stated by a negation.
    """
    if rng.random() < REVIEWS:
        liked = rng.random() < 0.5
        return f"{review(rng, split, liked, negated)} {verdict(liked, rng)}"
    scene = draw_scene(rng, split)
    later = rng.choices(FOLLOW_UPS, SHARES, k=rng.randint(4, 6))
    return " ".join([describe(scene, rng, negated), *(follow_up(scene, rng, negated) for follow_up in later)])
