"""The result of a classification by class: precision, recall and F1, from the confusion matrix, or from that of each
label if a row may have several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from actions.run.run_folder import METRICS
from heterolora.common.checks import Condition, check_keys
from heterolora.common.outside import read_json

#: A row for each true class: how often each class was predicted. Of several labels a row: [[neither, predicted alone],
#: [true alone, both]] for each label.
Confusion = Sequence[Sequence[Any]]

_WRITTEN = "expected the file that the run wrote"
_NAMES = Condition(lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value), "a list")
_TABLE = Condition(lambda value: isinstance(value, Mapping), "a table")


@dataclass(frozen=True)
class ClassResult:
    """The result of one class. A share without any row is 0, as in scikit-learn."""

    name: str
    rows: int
    precision: float
    recall: float
    f1: float


def is_of_labels(confusion: Confusion) -> bool:
    """Whether a row may have several labels."""
    return not isinstance(confusion[0][0], int)


def by_class(confusion: Confusion, labels: Sequence[str]) -> list[ClassResult]:
    """The result of each class, in the order of their ids."""
    return [_result(confusion, index, name) for index, name in enumerate(labels)]


def _result(confusion: Confusion, index: int, name: str) -> ClassResult:
    if is_of_labels(confusion):
        (_, wrong), (missed, right) = confusion[index]
        rows, predicted = right + missed, right + wrong
    else:
        right, rows, predicted = confusion[index][index], sum(confusion[index]), sum(row[index] for row in confusion)
    precision, recall, both = (right / count if count else 0.0 for count in (predicted, rows, (predicted + rows) / 2))
    return ClassResult(name, rows, precision, recall, both)


def class_table(split: str, confusion: Confusion, labels: Sequence[str]) -> Table:
    table = Table(title=f"Classes of {split}")
    table.add_column("class")
    for heading in ("rows", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for each in by_class(confusion, labels):
        table.add_row(each.name, f"{each.rows:,}", f"{each.precision:.4f}", f"{each.recall:.4f}", f"{each.f1:.4f}")
    return table


def read_classes(folder: Path) -> tuple[tuple[str, ...], dict[str, Confusion]]:
    """The classes of a run, and the confusion matrix of each split; empty if `metrics.json` has none.

    Raises UserError if the file cannot be read, or a matrix does not fit the classes.
    """
    path = folder / METRICS
    found: Any = read_json(path, "the metrics file", _WRITTEN).get("classes") if path.is_file() else None
    if found is None:
        return (), {}
    table = check_keys(f"{path}: classes", {"labels": _NAMES, "confusion": _TABLE}, found, _WRITTEN)
    size = len(table["labels"])
    expected = f"{size} rows of {size} counts, or {size} tables of 2 rows of 2 counts"
    fits = Condition(lambda value: _is_square(value, size) or _is_of_each_label(value, size), expected)
    matrices = {
        split: fits.check(str(path), f"confusion of {split}", each) for split, each in table["confusion"].items()
    }
    return tuple(table["labels"]), matrices


def _is_of_each_label(value: Any, size: int) -> bool:
    return isinstance(value, list) and len(value) == size and all(_is_square(each, 2) for each in value)


def _is_square(value: Any, size: int) -> bool:
    def fits(row: Any) -> bool:
        return isinstance(row, list) and len(row) == size and all(isinstance(each, int) and each >= 0 for each in row)

    return isinstance(value, list) and len(value) == size > 0 and all(map(fits, value))
