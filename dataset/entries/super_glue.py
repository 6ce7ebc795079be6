"""SuperGLUE (Wang et al. 2019, arXiv:1905.00537). Its test labels are hidden: `test` uses the validation split."""

from __future__ import annotations

from collections.abc import Callable

from dataset.spec import DatasetSpec, Row
from heterolora.errors import UserError, nearest


def _super_glue(
    name: str,
    columns: tuple[str, ...],
    labels: tuple[str, ...],
    summary: str,
    metrics: tuple[str, ...] = ("accuracy",),
    texts: Callable[[Row], tuple[str, ...]] | None = None,
) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        task="classification",
        path="aps/super_glue",
        config=name,
        columns=columns,
        texts=texts,
        labels=labels,
        metrics=metrics,
        test=None,
        official=f"super_glue/{name}",
        summary=summary,
    )


_COPA_QUESTION = {"cause": "What was the cause of this?", "effect": "What happened as a result?"}


def copa_texts(row: Row) -> tuple[str, str]:
    """Premise with its question, and both alternatives in order: one pair whose class is the better alternative."""
    question = row["question"]
    if question not in _COPA_QUESTION:
        raise UserError(f"copa: question '{question}' is not known", nearest(question, _COPA_QUESTION))
    return f"{row['premise']} {_COPA_QUESTION[question]}", f"First: {row['choice1']} Second: {row['choice2']}"


def wic_texts(row: Row) -> tuple[str, str]:
    """The word in front of the first sentence: the same two sentences are asked about different words."""
    return f"{row['word']}: {row['sentence1']}", row["sentence2"]


DATASETS = (
    _super_glue("boolq", ("question", "passage"), ("False", "True"), "yes or no question about a passage"),
    _super_glue(
        "cb",
        ("premise", "hypothesis"),
        ("entailment", "contradiction", "neutral"),
        "is the writer committed to the hypothesis?",
        ("accuracy", "f1"),
    ),
    _super_glue(
        "copa",
        ("premise", "choice1", "choice2", "question"),
        ("choice1", "choice2"),
        "which of two alternatives is the cause or the effect?",
        texts=copa_texts,
    ),
    _super_glue(
        "wic",
        ("word", "sentence1", "sentence2"),
        ("False", "True"),
        "has a word the same sense in two sentences?",
        texts=wic_texts,
    ),
)
