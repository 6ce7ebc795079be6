"""Labels: the ids of an entry's classes, or the numbers of a regression, from the values of a column.

A row of multi-label classification has the ids of all its labels, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, LargeList, List, Value

from dataset.reading.columns import ONE_LABEL
from dataset.reading.label_column import LabelColumn, is_missing
from dataset.reading.label_sets import are_sets, class_name, is_set, names_in
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError

_MOST_LISTED = 20
_LARGEST = 2.0**53  # whole numbers from here on are not exact
_HIDDEN = "-1"  # of a label that is not published
_FEW = 20  # so many classes are never too many for the number of rows


def label_ids(spec: DatasetSpec, where: str, rows: Dataset) -> pa.Array:
    """Return the ids of the labels of a split, or finite numbers for regression."""
    if spec.multi_label:
        return pa.array(_ids_of_sets(spec, where, rows), pa.list_(pa.int64()))
    if spec.own and not spec.regression:
        return pa.array(_ids_of_names(spec, where, rows))
    classes, feature = len(spec.labels), rows.features[spec.label]
    expected = "labels are real numbers"
    if classes:
        listing = ", ".join(f"{index} {name}" for index, name in enumerate(spec.labels))
        expected = f"labels are 0 to {classes - 1}: {listing}"
    found = LabelColumn.of(rows, spec.label)
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
            raise UserError(
                f"row {found.first(place)} of {where} has label {value!r}", ONE_LABEL if is_set(value) else expected
            )
    return pa.array(found.replaced(values, float if spec.regression else int))


# ---- own data: the values found are the names of the classes


def found_labels(
    where: str, rows: Dataset, column: str, may_be_numbers: bool, multi_label: bool | None
) -> tuple[tuple[str, ...], bool]:
    """Return the names of the classes in the label column of own data, in order, and whether rows have several.

    If it holds real numbers and `may_be_numbers`, there are none, because the numbers themselves are predicted. Raises
    UserError if the values cannot be classes: fewer than two, or nearly as many as rows.
    """
    feature, found = rows.features[column], LabelColumn.of(rows, column)
    values, missing = [value for value in found.distinct if not is_missing(value)], int(found.missing.sum())
    if not isinstance(feature, Value | ClassLabel | List | LargeList):
        raise UserError(f"column '{column}' of {where} holds objects", "name a field of them, such as label.name")
    if multi_label or (multi_label is None and are_sets(values)):
        return _names_of_sets(where, column, feature, values, len(rows) - missing), True
    return _names(where, column, feature, values, missing, len(rows), may_be_numbers), False


def _names(
    where: str, column: str, feature: Any, values: list[Any], missing: int, rows: int, may_be_numbers: bool
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
    _check_names(where, column, names, rows - missing)
    return _several(where, column, names, missing)


def _names_of_sets(where: str, column: str, feature: Any, values: list[Any], rows: int) -> tuple[str, ...]:
    of_class = getattr(feature, "feature", None)
    if isinstance(of_class, ClassLabel):
        return _several(where, column, [*map(class_name, of_class.names)])
    names = [*{name for value in values for name in names_in(value)}]
    names.sort(key=(lambda name: (int(name), name)) if all(map(_is_whole, names)) else None)
    _check_names(where, column, names, rows)
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
    values = LabelColumn.of(rows, spec.label).distinct
    return bool(values) and all(is_missing(value) or (hides and class_name(value) == _HIDDEN) for value in values)


def _ids_of_names(spec: DatasetSpec, where: str, rows: Dataset) -> np.ndarray:
    feature, found = rows.features[spec.label], LabelColumn.of(rows, spec.label)
    ids: dict[str | None, int] = {name: index for index, name in enumerate(spec.labels)}
    if isinstance(feature, ClassLabel):  # -1: hidden
        names = [feature.names[value] if value is not None and value >= 0 else None for value in found.distinct]
        found = replace(found, distinct=names)
    _check_all_there(where, found, f"the labels are {_listing(spec)}")
    for place, name in enumerate(names := [*map(class_name, found.distinct)]):
        if name not in ids:
            expected = ONE_LABEL if is_set(found.distinct[place]) else _of_all(spec)
            raise UserError(f"row {found.first(place)} of {where} has label '{name}'", expected)
    return found.replaced([ids[name] for name in names], int)


def _ids_of_sets(spec: DatasetSpec, where: str, rows: Dataset) -> list[list[int]]:
    ids = {name: index for index, name in enumerate(spec.labels)}
    of_class, found = getattr(rows.features[spec.label], "feature", None), LabelColumn.of(rows, spec.label)
    if isinstance(of_class, ClassLabel):
        named = [None if each is None else [of_class.names[index] for index in each] for each in found.distinct]
        found = replace(found, distinct=named)
    _check_all_there(where, found, f"a row without any of the labels has [], and the labels are {_listing(spec)}")
    sets = [names_in(value) for value in found.distinct]
    for place, names in enumerate(sets):
        if unknown := next((name for name in names if name not in ids), None):
            raise UserError(f"row {found.first(place)} of {where} has label '{unknown}'", _of_all(spec))
    of_set = [sorted(ids[name] for name in names) for names in sets]
    return [of_set[place] for place in found.places]


def _listing(spec: DatasetSpec) -> str:
    return ", ".join(spec.labels[:_MOST_LISTED]) + (", …" if len(spec.labels) > _MOST_LISTED else "")


def _of_all(spec: DatasetSpec) -> str:
    return f"the labels are {_listing(spec)}; --labels gives all of them"


def _check_all_there(where: str, found: LabelColumn, expected: str) -> None:
    if count := int(found.missing.sum()):
        what = f"{where} has {count} row{'s' * (count > 1)} without a label, row {np.argmax(found.missing)} first"
        raise UserError(what, f"give them one, or --drop-incomplete, which leaves them out; {expected}")
