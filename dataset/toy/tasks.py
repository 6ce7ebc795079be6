"""The rows of the four toy tasks, with the columns of the data sets that they imitate."""

from __future__ import annotations

from typing import Any

from dataset.toy.corpus import document, remark
from dataset.toy.language import describe, review, say, sentence, summarise
from dataset.toy.world import draw_scene, stream

NLI_LABELS = ("entailment", "not_entailment")
SENTIMENT_LABELS = ("negative", "positive")
ROWS = {"train": 4000, "validation": 500, "test": 500}

Rows = list[dict[str, Any]]


def generate_nli(split: str, seed: int) -> Rows:
    """Return rows with `sentence1`, `sentence2` and `label`, as RTE. Label 0: the answer to the question is yes.

    Both sentences may use negation, so neither of them alone and no bag of words determines the label. The question has
    a form that the pretraining text does not use.
    """
    rng = stream("nli", split, seed)
    rows = []
    for index in range(ROWS[split]):
        scene, label = draw_scene(rng, split), index % 2
        fact = rng.choice(scene.facts)
        asked = say(fact if label == 0 else fact.opposite, rng)
        second = sentence(f"was {scene.pronoun} {asked}, would you say", "?")
        rows.append({"sentence1": describe(scene, rng), "sentence2": second, "label": label})
    rng.shuffle(rows)
    return rows


def generate_sentiment(split: str, seed: int) -> Rows:
    """Return rows with `sentence` and `label`, as SST-2: is a review positive?"""
    rng = stream("sentiment", split, seed)
    rows = [{"sentence": review(rng, split, index % 2 == 1), "label": index % 2} for index in range(ROWS[split])]
    rng.shuffle(rows)
    return rows


def generate_lm(split: str, seed: int) -> Rows:
    """Return rows with `text`, as WikiText: documents to model."""
    rng = stream("lm", split, seed)
    return [{"text": document(rng, split)} for _ in range(ROWS[split])]


def generate_summary(split: str, seed: int) -> Rows:
    """Return rows with `document` and `summary`: two scenes with remarks, and both scenes summarised."""
    rng = stream("summary", split, seed)
    rows = []
    for _ in range(ROWS[split]):
        scenes = [draw_scene(rng, split) for _ in range(2)]
        told = [f"{describe(scene, rng)} {remark(scene, rng)}" for scene in scenes]
        rows.append({"document": " ".join(told), "summary": " ".join(summarise(scene) for scene in scenes)})
    return rows
