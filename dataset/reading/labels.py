"""Labels: the ids of an entry's classes, or the numbers of a regression, from the values of a column.

A row of multi-label classification has the ids of all its labels, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Dataset, LargeList, List, Value

from dataset.reading.columns import ONE_LABEL
from dataset.reading.label_sets import are_sets, class_name, is_set, names_in
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError

_MOST_LISTED = 20
_LARGEST = 2.0**53  # whole numbers from here on are not exact
_HIDDEN = "-1"  # of a label that is not published
_FEW = 20  # so many classes are never too many for the number of rows


def label_ids(spec: DatasetSpec, where: str, rows: Dataset) -> pa.Array:
    """Returns the ids of the labels of a split, or finite numbers for regression."""
    if spec.multi_label:
        return pa.array(_ids_of_sets(spec, where, rows), pa.list_(pa.int64()))
    if spec.own and not spec.regression:
        return pa.array(_ids_of_names(spec, where, rows), pa.int64())
    classes, feature = len(spec.labels), rows.features[spec.label]
    expected = "labels are real numbers"
    if classes:
        listing = ", ".join(f"{index} {name}" for index, name in enumerate(spec.labels))
        expected = f"labels are 0 to {classes - 1}: {listing}"
    values = _values(rows, spec.label)
    _check_all_there(where, values, expected)

    if classes and isinstance(feature, ClassLabel):
        if feature.num_classes != classes:
            raise UserError(f"{where} has the labels {', '.join(feature.names)}", expected)
        if set(feature.names) == set(spec.labels):  # the order of the names may differ
            values = [spec.labels.index(feature.names[value]) if value >= 0 else value for value in values]
    elif classes and isinstance(values[0], str):
        ids = {name: index for index, name in enumerate(spec.labels)}
        values = [ids.get(value, value) for value in values]

    for index, value in enumerate(values):
        if classes and value == -1:
            raise UserError(f"the labels of {where} are hidden (-1 in row {index})", expected)
        valid = isinstance(value, int | float) and (value in range(classes) if classes else math.isfinite(value))
        if not valid:
            raise UserError(f"row {index} of {where} has label {value!r}", ONE_LABEL if is_set(value) else expected)
    return pa.array(values, pa.float64() if spec.regression else pa.int64())


# ---- own data: the values found are the names of the classes


def found_labels(
    where: str, rows: Dataset, column: str, may_be_numbers: bool, multi_label: bool | None
) -> tuple[tuple[str, ...], bool]:
    """Returns the names of the classes in the label column of own data, in order, and whether rows have several.

    If it holds real numbers and `may_be_numbers`, there are none, because the numbers themselves are predicted. Raises
    UserError if the values cannot be classes: fewer than two, or nearly as many as rows.
    """
    feature, found = rows.features[column], _values(rows, column)
    values = [value for value in found if not is_missing(value)]
    if not isinstance(feature, Value | ClassLabel | List | LargeList):
        raise UserError(f"column '{column}' of {where} holds objects", "name a field of them, such as label.name")
    if multi_label or (multi_label is None and are_sets(values)):
        return _names_of_sets(where, column, feature, values), True
    return _names(where, column, feature, found, values, may_be_numbers), False


def _names(
    where: str, column: str, feature: Any, found: list[Any], values: list[Any], may_be_numbers: bool
) -> tuple[str, ...]:
    if isinstance(feature, ClassLabel):
        return _several(where, column, [*map(class_name, feature.names)])
    if one := next(filter(is_set, values), None):
        raise UserError(f"column '{column}' of {where} has the label {one}", ONE_LABEL)
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
    names = [*dict.fromkeys(map(class_name, ordered))]
    _check_names(where, column, names, len(values))
    return _several(where, column, names, missing=len(found) - len(values))


def _names_of_sets(where: str, column: str, feature: Any, values: list[Any]) -> tuple[str, ...]:
    of_class = getattr(feature, "feature", None)
    if isinstance(of_class, ClassLabel):
        return _several(where, column, [*map(class_name, of_class.names)])
    names = [*{name for value in values for name in names_in(value)}]
    names.sort(key=(lambda name: (int(name), name)) if all(map(_is_whole, names)) else None)
    _check_names(where, column, names, len(values))
    return _several(where, column, names)


def _is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal() and len(name) < 20


def _check_names(where: str, column: str, names: Sequence[str], rows: int) -> None:
    if odd := next((name for name in names if not name.isprintable()), None):
        raise UserError(f"column '{column}' of {where} has the label {odd!r}", "give labels without control characters")
    if len(names) > max(_FEW, rows // 2):
        raise UserError(
            f"column '{column}' of {where} has {len(names):,} different labels in {rows:,} rows",
            "give --label-column the column of the classes, or --regression for numbers to predict",
        )


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
    values = _values(rows, spec.label)
    return bool(values) and all(is_missing(value) or (hides and class_name(value) == _HIDDEN) for value in values)


def _ids_of_names(spec: DatasetSpec, where: str, rows: Dataset) -> list[int]:
    feature, ids = rows.features[spec.label], {name: index for index, name in enumerate(spec.labels)}
    values = _values(rows, spec.label)
    if isinstance(feature, ClassLabel):
        values = [feature.names[value] if value is not None and value >= 0 else None for value in values]  # -1: hidden
    _check_all_there(where, values, f"the labels are {_listing(spec)}")
    for index, name in enumerate(names := [*map(class_name, values)]):
        if name not in ids:
            expected = ONE_LABEL if is_set(values[index]) else _of_all(spec)
            raise UserError(f"row {index} of {where} has label '{name}'", expected)
    return [ids[name] for name in names]


def _ids_of_sets(spec: DatasetSpec, where: str, rows: Dataset) -> list[list[int]]:
    ids = {name: index for index, name in enumerate(spec.labels)}
    of_class = getattr(rows.features[spec.label], "feature", None)
    values = _values(rows, spec.label)
    if isinstance(of_class, ClassLabel):
        values = [None if value is None else [of_class.names[index] for index in value] for value in values]
    _check_all_there(where, values, f"a row without any of the labels has [], and the labels are {_listing(spec)}")
    sets = [names_in(value) for value in values]
    for index, names in enumerate(sets):
        if unknown := next((name for name in names if name not in ids), None):
            raise UserError(f"row {index} of {where} has label '{unknown}'", _of_all(spec))
    return [sorted(ids[name] for name in names) for names in sets]


def _listing(spec: DatasetSpec) -> str:
    return ", ".join(spec.labels[:_MOST_LISTED]) + (", …" if len(spec.labels) > _MOST_LISTED else "")


def _of_all(spec: DatasetSpec) -> str:
    return f"the labels are {_listing(spec)}; --labels gives all of them"


def _values(rows: Dataset, column: str) -> list[Any]:
    return rows.with_format("arrow")[:][column].to_pylist()


def _check_all_there(where: str, values: list[Any], expected: str) -> None:
    if missing := [index for index, value in enumerate(values) if is_missing(value)]:
        found = f"{where} has {len(missing)} rows without a label, row {missing[0]} first"
        raise UserError(found, f"give them one, or --drop-incomplete, which leaves them out; {expected}")


def is_missing(value: Any) -> bool:
    """Whether a label is not there."""
    return value is None or (isinstance(value, str) and not value.strip())
