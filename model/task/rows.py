"""The result of each evaluated row, for comparisons of two models row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from torch import Tensor

from heterolora.common.files import write_text

ROWS = "rows.csv"


@dataclass(frozen=True, order=True)
class RowResult:
    """The result of a row. `index` is its place in the split; `correct` is 1 or 0, and None without labels."""

    split: str
    index: int
    loss: float  # the sum over `count`
    count: int
    correct: int | None = None

    @classmethod
    def of_batch(
        cls, split: str, indices: Tensor, kept: Tensor, losses: Tensor, counts: Tensor, correct: Tensor | None
    ) -> list[RowResult]:
        """The rows of a batch that `kept` (rows,) marks; the others are filler."""
        hits = [None] * len(indices) if correct is None else correct.int().tolist()
        columns = (indices.tolist(), losses.tolist(), counts.tolist(), hits, kept.tolist())
        return [
            cls(split, index, loss, int(count), hit)
            for index, loss, count, hit, keep in zip(*columns, strict=True)
            if keep
        ]


def write_rows(folder: Path, rows: Iterable[RowResult]) -> None:
    """Writes `rows.csv`, sorted by split and row."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(field.name for field in fields(RowResult))
    writer.writerows(astuple(row) for row in sorted(rows, key=lambda row: (row.split, row.index)))
    write_text(folder / ROWS, text.getvalue())
