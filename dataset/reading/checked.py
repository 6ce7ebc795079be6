"""Rows, checked against the entry of their data set."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Value

from dataset.reading.conversations import conversations
from dataset.reading.incomplete import without_incomplete
from dataset.reading.labels import label_ids
from dataset.reading.row_file import BATCH, empty
from dataset.spec import DatasetSpec, Wanted
from heterolora.common.errors import UserError, nearest


def checked(spec: DatasetSpec, where: str, rows: Dataset, notes: list[str], some: bool = False) -> Dataset:
    """Return the entry's columns of a split, with label ids and without missing texts. Appends to `notes`.

    `some`: the rows are some of the split, of which all may be incomplete.
    """
    rows = checked_texts(spec, spec.wanted, where, rows, notes, some=some)
    if not spec.classifies:
        return rows
    return _with_column(rows, spec.label, label_ids(spec, where, rows))


def checked_texts(
    spec: DatasetSpec,
    wanted: Wanted,
    where: str,
    rows: Dataset,
    notes: list[str],
    answered: bool = True,
    some: bool = False,
) -> Dataset:
    """Return the wanted columns of a split, without missing texts. Appends to `notes`.

    `answered`: whether the rows are examples, which have labels and a turn of the assistant. `some`: as of `checked`.
    """
    if len(rows) == 0:
        raise empty(where)
    for column in wanted.columns:
        if column not in rows.column_names:
            raise UserError(f"{where} has no column '{column}'", nearest(column, rows.column_names))
    rows = rows.with_format(None).select_columns(wanted.columns)
    if spec.chat:
        return Dataset.from_dict({spec.columns[0]: conversations(where, rows[spec.columns[0]][:], answered)})
    if spec.own and answered:
        rows = without_incomplete(spec, where, rows, notes)
        if len(rows) == 0 and not some:
            raise empty(where)
    for column in wanted.nested:  # text is JSON already
        texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in rows[column][:]]
        rows = _with_column(rows, column, texts)
    for column in wanted.texts:
        feature = rows.features[column]
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise UserError(f"column '{column}' of {where} holds {kind}", "it must hold text")
        texts = rows.select_columns(column).with_format("arrow")
        if missing := sum(part[column].null_count for part in texts.iter(BATCH)):
            notes.append(f"{missing} rows of {where} have no text in column '{column}': an empty text is used")
            rows = _with_column(rows, column, texts[:][column].fill_null(""))
    columns = [column for column in spec.columns if column in wanted.texts]
    if columns and spec.choices is None and not some and not any(_has_text(rows, column) for column in columns):
        names = " and ".join(f"'{column}'" for column in columns)
        raise UserError(f"all texts of {where} are empty, in column {names}", "give the column of the texts")
    return rows


def _has_text(rows: Dataset, column: str) -> bool:
    parts = rows.select_columns(column).with_format("arrow").iter(BATCH)
    return any(pc.any(pc.not_equal(pc.utf8_trim_whitespace(part[column]), "")).as_py() for part in parts)


def _with_column(rows: Dataset, column: str, values: Any) -> Dataset:
    """Return the rows with other values in a column."""
    if rows.column_names == [column]:  # without it, `datasets` would forget how many rows there are
        return Dataset(pa.table({column: values}))
    return rows.remove_columns(column).add_column(column, values).select_columns(rows.column_names)
