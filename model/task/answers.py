"""What a model predicts for a row, as numbers or text. `actions.prediction.columns` names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from torch import Tensor

from heterolora.saliency.problem import Batch


@dataclass(frozen=True)
class Answer:
    """The prediction for a row.

    Attributes:
        row: its place in the input.
        scores: the probability of each class, the log-likelihood of each choice, or the one value of a regression.
        text: generated text.
    """

    row: int
    scores: tuple[float, ...] = ()
    text: str | None = None


def answers_of(batch: Batch, **columns: Sequence[Any]) -> list[Answer]:
    """An answer for each row of a batch, without filler rows. `columns`: name of an attribute -> its values."""
    kept = (batch["weight"] > 0).tolist()
    rows: Tensor = batch["index"]
    each = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    return [Answer(row, **values) for row, values in compress(zip(rows.tolist(), each, strict=True), kept)]
