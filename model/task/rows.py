"""The result of each evaluated row, for comparisons of two models row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from heterolora.common.files import write_text

ROWS = "rows.csv"


@dataclass(frozen=True)
class Answers:
    """Labels and predictions (rows,): classes, or real values in a regression. (rows, classes) if multi-label: 1 or 0.

    Attributes:
        scores: (rows, classes) log-probabilities up to a constant of each row. None without one class a row.
    """

    labels: Tensor
    predicted: Tensor
    scores: Tensor | None = None

    def kept(self, kept: Tensor) -> list[list[Any]]:
        """Correctness, labels, predictions and their probabilities of the rows that `kept` (rows,) marks."""
        labels, predicted = self.labels[kept], self.predicted[kept]
        none = [None] * len(labels)
        if labels.ndim > 1:
            hits = (labels == predicted).all(-1).int().tolist()
            return [hits, *([str(row.nonzero().flatten().tolist()) for row in of] for of in (labels, predicted)), none]
        hits = none if self.scores is None else (labels == predicted).int().tolist()
        chances = none if self.scores is None else self.scores[kept].softmax(-1).amax(-1).tolist()
        return [hits, labels.tolist(), predicted.tolist(), chances]


@dataclass(frozen=True, order=True)
class RowResult:
    """The result of a row. `index` is its place in the split.

    `correct` is 1 or 0 and None without classes; `label` and `predicted` are classes or, in a regression, real values,
    and None in a task without labels. Multi-label, they are lists of classes such as `[0, 2]`. `probability` is that of
    the predicted class, or of the choice among the others.
    """

    split: str
    index: int
    loss: float  # the sum over `count`
    count: int
    correct: int | None = None
    label: float | str | None = None
    predicted: float | str | None = None
    probability: float | None = None

    @classmethod
    def of_batch(
        cls, split: str, indices: Tensor, kept: Tensor, losses: Tensor, counts: Tensor, answers: Answers | None
    ) -> list[RowResult]:
        """The rows of a batch that `kept` (rows,) marks; the others are filler."""
        columns = [indices[kept].tolist(), losses[kept].tolist(), counts[kept].int().tolist()]
        if answers is not None:
            columns += answers.kept(kept)
        return [cls(split, *row) for row in zip(*columns, strict=True)]


def write_rows(folder: Path, rows: Iterable[RowResult]) -> None:
    """Write `rows.csv`, sorted by split and row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(RowResult))
    writer.writerows(astuple(row) for row in sorted(rows, key=lambda row: (row.split, row.index)))
    write_text(folder / ROWS, text.getvalue())
