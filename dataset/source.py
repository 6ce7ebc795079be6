"""Reads the splits of a data set and checks them against its entry, before anything else is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Value

from dataset.folder import WHOLE, Readers, empty, saved_splits
from dataset.spec import DatasetSpec
from heterolora.errors import UserError, nearest
from heterolora.outside import reading

HELD_OUT = 0.05
# The data do not depend on `--seed`. Otherwise a `test` with another seed would score rows of the training split.
DATA_SEED = 0


@dataclass(frozen=True)
class Splits:
    """The rows of a data set before tokenisation, with the entry's columns only. Labels are ids, or floats."""

    train: Dataset  # in file order
    validation: Mapping[str, Dataset]  # by name, in the entry's order
    test: Mapping[str, Dataset]  # by name; the validation splits if there is no test split with labels
    notes: tuple[str, ...]  # decisions that the user should know, one sentence each


def read_splits(spec: DatasetSpec, saved_path: str | Path | None = None, cache: bool = True) -> Splits:
    """Reads and checks the splits of `spec`, from `saved_path` if given, else from its generator or the hub.

    `saved_path` is a `save_to_disk` folder, or a folder of `train`, `validation` and `test` files. With `cache`,
    converted files are kept for the next run. Raises UserError if a folder, split or column is missing, if a split is
    empty, if labels do not match the entry, or if the hub cannot be reached.
    """
    notes: list[str] = []
    available, validation_names = _available(spec, saved_path, cache), spec.validation
    if tuple(available) == (WHOLE,):
        available, validation_names = {spec.train: available[WHOLE]}, ()
    elif saved_path is not None and not validation_names and "validation" in available:
        validation_names = ("validation",)

    def read(split: str) -> Dataset:
        if split not in available:
            raise UserError(f"data set '{spec.name}' has no split '{split}'", nearest(split, available))
        where = f"split '{split}' of data set '{spec.name}'" + (f" in '{saved_path}'" if saved_path else "")
        return _checked(spec, where, available[split](), notes)

    train = read(spec.train)
    validation = {split: read(split) for split in validation_names}
    if not validation:
        train, held_out = _hold_out(train)
        validation = {"validation": held_out}
        notes.append(
            f"no validation split: {len(held_out)} of {len(train) + len(held_out)} training rows ({HELD_OUT:.0%}, the "
            f"same for every seed) are held out"
        )
    if spec.test is not None and (spec.test in available or saved_path is None):
        return Splits(train, validation, {spec.test: read(spec.test)}, tuple(notes))
    why = "there is no test split"
    if spec.test is None and spec.validation:
        why = f"the test labels of {spec.name} are hidden"
        if saved_path is not None and "test" in available:
            why += ", and the folder's test split is not read"
    notes.append(f"{why}: test uses {' and '.join(validation)}")
    return Splits(train, validation, validation, tuple(notes))


def _available(spec: DatasetSpec, saved_path: str | Path | None, cache: bool) -> Readers:
    """Returns a function for each split that reads it."""
    if saved_path is not None:
        return saved_splits(saved_path, spec, cache)
    if spec.generate is not None:
        splits = (spec.train, *spec.validation, *((spec.test,) if spec.test else ()))
        return {split: lambda split=split: Dataset.from_list(spec.generate(split, DATA_SEED)) for split in splits}
    if spec.path is None:
        raise UserError(f"data set '{spec.name}' has no hub repository", "give --dataset-saved-path")
    try:
        on_hub = datasets.load_dataset(spec.path, spec.config)
    except Exception as error:  # the HTTP library of the hub's client raises its own errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"data set '{spec.name}' could not be fetched from the hub ({reason})",
            f"connect to it, correct path and config of the entry, or give --dataset-saved-path a folder that holds "
            f"'{spec.path}'",
        ) from error
    return {split: partial(_intact, spec, rows) for split, rows in on_hub.items()}


def _intact(spec: DatasetSpec, rows: Dataset) -> Dataset:
    with reading("the copy in the cache of data set", spec.name, "delete it from the cache of `datasets`"):
        rows.data.validate(full=True)  # damaged offsets would end the whole process when a text is read
    return rows


def _hold_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    """Returns the remaining rows, and 5% that are drawn with a fixed seed. Both are in file order."""
    if len(rows) < 2:
        raise UserError(f"split 'train' has {len(rows)} row, and part of it must be held out", "give at least 2 rows")
    order = np.random.default_rng(DATA_SEED).permutation(len(rows))
    count = max(1, round(HELD_OUT * len(rows)))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))


def _checked(spec: DatasetSpec, where: str, rows: Dataset, notes: list[str]) -> Dataset:
    """Returns the entry's columns of a split, with label ids and without missing texts. Appends to `notes`."""
    wanted = [*spec.columns, *([spec.label_column] if spec.label_column else [])]
    if len(rows) == 0:
        raise empty(where)
    for column in wanted:
        if column not in rows.column_names:
            raise UserError(f"{where} has no column '{column}'", nearest(column, rows.column_names))
    rows = rows.with_format(None).select_columns(wanted)
    for column in spec.columns:
        feature = rows.features[column]
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise UserError(f"column '{column}' of {where} holds {kind}", "it must hold text")
        missing = rows.with_format("arrow")[:][column].null_count
        if missing:
            notes.append(f"{missing} rows of {where} have no text in column '{column}': an empty text is used")
            rows = rows.map(
                lambda row, column=column: {column: row[column] or ""}, keep_in_memory=True, load_from_cache_file=False
            )
    if spec.task != "classification":
        return rows
    labels = np.asarray(_labels(spec, where, rows))
    return rows.remove_columns(spec.label).add_column(spec.label, labels)


def _labels(spec: DatasetSpec, where: str, rows: Dataset) -> list[int] | list[float]:
    """Returns the ids of the labels, or finite numbers for regression."""
    classes, feature = len(spec.labels), rows.features[spec.label]
    expected = "labels are real numbers"
    if classes:
        listing = ", ".join(f"{index} {name}" for index, name in enumerate(spec.labels))
        expected = f"labels are 0 to {classes - 1}: {listing}"
    values = rows.with_format("arrow")[:][spec.label].to_pylist()
    if missing := values.count(None):
        raise UserError(f"{where} has {missing} rows without a label", expected)

    if classes and isinstance(feature, ClassLabel):
        if feature.num_classes != classes:
            raise UserError(f"{where} has the labels {', '.join(feature.names)}", expected)
        if set(feature.names) == set(spec.labels):  # the order of the names may differ
            values = [spec.labels.index(feature.names[value]) if value >= 0 else value for value in values]
    elif isinstance(values[0], str):
        ids = {name: index for index, name in enumerate(spec.labels)}
        values = [ids.get(value, value) for value in values]

    for index, value in enumerate(values):
        if classes and value == -1:
            raise UserError(f"the labels of {where} are hidden (-1 in row {index})", expected)
        valid = isinstance(value, int | float) and (value in range(classes) if classes else math.isfinite(value))
        if not valid:
            raise UserError(f"row {index} of {where} has label {value!r}", expected)
    return [float(value) if spec.regression else int(value) for value in values]
