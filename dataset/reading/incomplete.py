"""Rows of own data that lack a label or a text, and words that programs write for a missing text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from datasets import Dataset

from dataset.reading.label_column import is_missing
from dataset.reading.row_file import BATCH
from dataset.spec import DatasetSpec

_NO_TEXT = {"", "na", "n/a", "nan", "null"}


def without_incomplete(spec: DatasetSpec, where: str, rows: Dataset, notes: list[str]) -> Dataset:
    """Return the rows that have all that the model reads, if `spec` leaves out the others. Appends to `notes`.

    Without that, a note counts the rows whose text is a word for a missing one.
    """
    if spec.packed or spec.chat:  # empty lines and turns belong to a text
        return rows
    texts = _lacks_text(spec, rows, _says_nothing)
    if not spec.drop_incomplete:
        if count := int((texts & ~_lacks_text(spec, rows, _is_null)).sum()):
            found = f"{count} rows of {where} have a text that is empty or NA, null or nan"
            notes.append(f"{found}; --drop-incomplete leaves them out")
        return rows
    labels = _column(rows, spec.label_column, is_missing) if spec.label_column else np.zeros(len(rows), bool)
    if (dropped := texts | labels).any():
        found = f"{dropped.sum()} of {len(rows)} rows of {where} are left out"
        notes.append(f"{found}: {texts.sum()} without a text, {labels.sum()} without a label")
    return rows.select(np.flatnonzero(~dropped))


def _lacks_text(spec: DatasetSpec, rows: Dataset, lacks: Callable[[object], bool]) -> np.ndarray:
    """Which rows lack a text. Of the columns of a prompt, one is enough: an instruction may have no input."""
    prompt = spec.columns[:-1] if spec.prompt is not None else ()
    each = [_column(rows, column, lacks) for column in spec.columns if column not in (*prompt, *spec.nested)]
    if prompt:
        each.append(np.logical_and.reduce([_column(rows, column, lacks) for column in prompt]))
    return np.logical_or.reduce(each)


def _column(rows: Dataset, column: str, lacks: Callable[[object], bool]) -> np.ndarray:
    parts = rows.select_columns(column).with_format("arrow").iter(BATCH)
    return np.fromiter((lacks(value) for part in parts for value in part[column].to_pylist()), bool, len(rows))


def _is_null(value: object) -> bool:
    return value is None


def _says_nothing(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() in _NO_TEXT)
