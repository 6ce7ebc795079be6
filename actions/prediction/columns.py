"""The names of the columns that a prediction adds to the columns of its row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from dataset.reading.label_sets import in_one_text
from dataset.spec import DatasetSpec
from model.task.answers import Answer

THRESHOLD = 0.5  # of the probability of a label, where a row may have several
KEPT = "input_"  # before the name of a column of the input that a prediction has too

Row = Mapping[str, Any]


def predicted(
    spec: DatasetSpec, answer: Answer, choices: Sequence[str] | None = None, probabilities: bool = False
) -> Row:
    """The columns of a prediction.

    Args:
        spec: what the model predicts.
        answer: what it predicted.
        choices: those of the row, for multiple choice.
        probabilities: whether each class has a column.
    """
    if answer.text is not None:
        return {"text": answer.text}
    of_classes = {}
    if probabilities and spec.labels:
        of_classes = {f"probability_{name}": score for name, score in zip(spec.labels, answer.scores, strict=True)}
    if spec.multi_label:
        found = [name for name, score in zip(spec.labels, answer.scores, strict=True) if score > THRESHOLD]
        return {"labels": in_one_text(found), **of_classes}
    best = max(range(len(answer.scores)), key=answer.scores.__getitem__)
    if choices is not None:
        return {"choice": choices[best], "log_likelihoods": [*answer.scores]}
    if spec.regression:
        return {"value": answer.scores[0]}
    return {"label": spec.labels[best], "probability": answer.scores[best], **of_classes}


def joined(kept: Sequence[Row], predictions: Iterable[Row]) -> Iterator[Row]:
    """The rows of the input with their predictions. A column of the input that has the name of a prediction's is called
    `input_…`.
    """
    for row, prediction in zip(kept, predictions, strict=True):
        yield {**{new_name(name, prediction): value for name, value in row.items()}, **prediction}


def new_name(name: str, prediction: Row) -> str:
    return f"{KEPT}{name}" if name in prediction else name


def renamed(kept: Sequence[Row], prediction: Row) -> list[str]:
    """The columns of the input that have another name in the output."""
    names = dict.fromkeys(name for row in kept for name in row)
    return [name for name in names if name in prediction]
