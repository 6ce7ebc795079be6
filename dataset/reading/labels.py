"""Labels: the ids of an entry's classes, or the numbers of a regression, from the values of a column."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from dataset.reading.columns import ONE_LABEL
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError

_MOST_LISTED = 20
_LARGEST = 2.0**53  # whole numbers from here on are not exact
_HIDDEN = "-1"  # of a label that is not published
_FEW = 20  # so many classes are never too many for the number of rows


def label_ids(spec: DatasetSpec, where: str, rows: Dataset) -> np.ndarray:
    """Returns the ids of the labels of a split (rows,), or finite numbers for regression."""
    if spec.own and not spec.regression:
        return _ids_of_names(spec, where, rows)
    classes, feature = len(spec.labels), rows.features[spec.label]
    expected = "labels are real numbers"
    if classes:
        listing = ", ".join(f"{index} {name}" for index, name in enumerate(spec.labels))
        expected = f"labels are 0 to {classes - 1}: {listing}"
    found = _Column.of(rows, spec.label)
    _check_all_there(where, found, expected)
    values = found.distinct

    ids = {name: index for index, name in enumerate(spec.labels)}
    if classes and isinstance(feature, ClassLabel):
        if feature.num_classes != classes:
            raise UserError(f"{where} has the labels {', '.join(feature.names)}", expected)
        if set(feature.names) == set(spec.labels):  # the order of the names may differ
            values = [ids[feature.names[value]] if value >= 0 else value for value in values]
    elif classes and isinstance(values[0], str):
        values = [ids.get(value, value) for value in values]

    for place, value in enumerate(values):  # the first of them is in the first row that is wrong
        if classes and value == -1:
            raise UserError(f"the labels of {where} are hidden (-1 in row {found.first(place)})", expected)
        valid = isinstance(value, int | float) and (value in range(classes) if classes else math.isfinite(value))
        if not valid:
            raise UserError(f"row {found.first(place)} of {where} has label {value!r}", expected)
    return found.replaced(values, float if spec.regression else int)


@dataclass(frozen=True)
class _Column:
    """The values of a column: those that differ, in the order in which they first appear, and which one each row has.

    So what a label is, is found once for a label, and not for each row.
    """

    distinct: list[Any]
    places: np.ndarray  # (rows,)

    @classmethod
    def of(cls, rows: Dataset, column: str) -> _Column:
        values = rows.select_columns(column).with_format("arrow")[:][column].combine_chunks()
        if pa.types.is_nested(values.type):  # Arrow does not compare them
            return cls(values.to_pylist(), np.arange(len(values)))
        encoded = pc.dictionary_encode(values, null_encoding="encode")
        return cls(encoded.dictionary.to_pylist(), encoded.indices.to_numpy())

    @property
    def missing(self) -> np.ndarray:
        """Which rows have no label."""
        return self.replaced([*map(is_missing, self.distinct)], bool)

    def first(self, place: int) -> int:
        """Returns the first row with the value at `place`."""
        return int(np.argmax(self.places == place))

    def replaced(self, values: Sequence[Any], kind: type) -> np.ndarray:
        """Returns what the rows have (rows,) if these values replace the distinct ones."""
        return np.asarray(values, kind)[self.places] if values else np.zeros(0, kind)


# ---- own data: the values found are the names of the classes


def found_labels(where: str, rows: Dataset, column: str, may_be_numbers: bool) -> tuple[str, ...]:
    """Returns the names of the classes in the label column of own data, in order.

    If it holds real numbers and `may_be_numbers`, there are none, because the numbers themselves are predicted. Raises
    UserError if the values cannot be classes: fewer than two, or nearly as many as rows.
    """
    feature = rows.features[column]
    if isinstance(feature, ClassLabel):
        return _several(where, column, [*map(_name, feature.names)])
    if not isinstance(feature, Value):
        raise UserError(f"column '{column}' of {where} holds lists or objects", ONE_LABEL)
    found = _Column.of(rows, column)
    values = [value for value in found.distinct if not is_missing(value)]
    missing = int(found.missing.sum())
    labelled = len(rows) - missing
    if may_be_numbers and any(isinstance(value, float) for value in values):
        if large := next((value for value in values if abs(value) >= _LARGEST), None):
            raise UserError(
                f"column '{column}' of {where} has the number {large:g}, whose digits are not kept",
                "give the classes names, or --regression to predict numbers",
            )
        different = set(values)
        if len(different) <= _FEW and all(float(value).is_integer() for value in different):
            raise UserError(
                f"column '{column}' of {where} has whole numbers such as {max(different)}, as pandas writes classes",
                "give --regression false to predict classes, or --regression to predict numbers",
            )
        return ()
    ordered = sorted({value.strip() if isinstance(value, str) else value for value in values})
    names = [*dict.fromkeys(map(_name, ordered))]
    if odd := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"column '{column}' of {where} has the label {odd!r}", "give labels without control characters")
    if len(names) > max(_FEW, labelled // 2):
        raise UserError(
            f"column '{column}' of {where} has {len(names):,} different labels in {labelled:,} rows",
            "give --label-column the column of the classes, or --regression for numbers to predict",
        )
    return _several(where, column, names, missing)


def _several(where: str, column: str, names: list[str], missing: int = 0) -> tuple[str, ...]:
    if len(names) < 2:
        if names and missing:
            raise UserError(
                f"column '{column}' of {where} has the label '{names[0]}' or none: {missing:,} rows "
                "are empty, nan or null",
                "give every row a label; a class that is called nan needs another name",
            )
        raise UserError(
            f"column '{column}' of {where} has the same label in every row" if names else f"{where} has no labels",
            "give --label-column a column with at least two different values",
        )
    return tuple(names)


def are_hidden(spec: DatasetSpec, rows: Dataset) -> bool:
    """Whether no row of a split has a label: each is missing, or -1, which stands for a label that is not published."""
    hides = isinstance(rows.features[spec.label], ClassLabel) or _HIDDEN not in spec.labels
    values = _Column.of(rows, spec.label).distinct
    return bool(values) and all(is_missing(value) or (hides and _name(value) == _HIDDEN) for value in values)


def _ids_of_names(spec: DatasetSpec, where: str, rows: Dataset) -> np.ndarray:
    feature, ids = rows.features[spec.label], {name: index for index, name in enumerate(spec.labels)}
    found = _Column.of(rows, spec.label)
    if isinstance(feature, ClassLabel):  # -1: hidden
        names = [feature.names[value] if value is not None and value >= 0 else None for value in found.distinct]
        found = replace(found, distinct=names)
    listing = ", ".join(spec.labels[:_MOST_LISTED]) + (", …" if len(spec.labels) > _MOST_LISTED else "")
    _check_all_there(where, found, f"the labels are {listing}")
    names_found = [*map(_name, found.distinct)]
    for place, name in enumerate(names_found):
        if name not in ids:
            expected = f"the labels are {listing}; --labels gives all of them"
            raise UserError(f"row {found.first(place)} of {where} has label '{name}'", expected)
    return found.replaced([ids[name] for name in names_found], int)


def _check_all_there(where: str, found: _Column, expected: str) -> None:
    if (missing := found.missing).any():
        what = f"{where} has {missing.sum()} rows without a label, row {np.argmax(missing)} first"
        raise UserError(what, f"give them one, or --drop-incomplete, which leaves them out; {expected}")


def is_missing(value: Any) -> bool:
    """Whether a label is not there."""
    return value is None or (isinstance(value, str) and not value.strip())


def _name(value: Any) -> str:
    """Returns the name of a class: a number as it is written, also if a file holds 1 as 1.0; `true` and `false`."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
