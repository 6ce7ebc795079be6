"""The texts that are encoded: the columns of a row, or what the entry's functions make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from datasets import Dataset

from dataset.choices import Choices, expected_label, is_ambiguous, place_of
from dataset.reading.json_files import check_characters
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, shown

EXAMPLES = "few-shot examples"  # a column of raw rows: a JSON list of texts, see `dataset.encoding.few_shot`
_TEXTS = ("text", "pair")
_BATCH = 10_000


def render(spec: DatasetSpec, rows: pa.Table, first: int = 0) -> pa.Table:
    """Return the texts of some rows of a split, and the column `label` for classification, if they have it.

    The texts are in the columns `prompt` and `response`, or `text`, or `text` and `pair`. Multiple choice has `header`,
    `examples`, `prompt` and `choices`, and `label` is the place of the right choice, 0 if that is not known. `examples`
    and `choices` are JSON lists. Rows to predict have no `response`.

    Args:
        spec: the data set.
        rows: the entry's columns.
        first: number of the first row, for error messages.

    Raises UserError if a function of the entry fails, or returns anything but texts.
    """
    if spec.choices is not None:
        return _questions(spec, spec.choices, rows, first)
    if spec.prompt is not None:
        functions = {"prompt": spec.prompt, "response": spec.response}
        functions = {name: function for name, function in functions.items() if _is_read(spec, name, rows)}
        texts = {name: _strings(spec, name, function, rows.to_pylist(), first) for name, function in functions.items()}
    elif spec.texts is not None:
        pairs = _results(spec, "texts", spec.texts, rows.to_pylist(), first)
        columns = [pa.array(column, pa.large_string()) for column in zip(*pairs, strict=True)]
        texts = dict(zip(_TEXTS, columns, strict=False))
    else:
        texts = {name: rows[column] for name, column in zip(_TEXTS, spec.columns, strict=False)}
    labelled = spec.classifies and spec.label in rows.column_names
    return pa.table({**texts, "label": rows[spec.label]} if labelled else texts)


def _is_read(spec: DatasetSpec, name: str, rows: pa.Table) -> bool:
    """Whether the rows have what a function of the entry reads. Rows to predict have no response."""
    return name != "response" or {*spec.columns} <= {*rows.column_names}


def rendered(rows: Dataset, spec: DatasetSpec) -> Iterator[pa.Table]:
    """Yield the texts of a split in batches."""
    first = 0
    for batch in rows.with_format("arrow").iter(_BATCH):
        yield render(spec, batch, first)
        first += len(batch)


def _questions(spec: DatasetSpec, chosen: Choices, table: pa.Table, first: int) -> pa.Table:
    """Return the texts of multiple choice, as `render` describes them."""
    rows = _decoded(spec, table, first)
    choices = _results(spec, "choices", chosen.texts, rows, first)
    keys = _results(spec, "keys", chosen.keys, rows, first) if chosen.keys else [None] * len(rows)
    right = [0] * len(rows)
    if spec.label in table.column_names:
        labels = table[spec.label].to_pylist()
        right = [
            _right(f"row {index} of data set '{spec.name}'", spec.label, *of_row)
            for index, of_row in enumerate(zip(labels, choices, keys, strict=True), first)
        ]
    empty = pa.array(["[]"] * len(rows), pa.large_string())
    return pa.table(
        {
            "header": _strings(spec, "header", chosen.header or (lambda row: ""), rows, first),
            "examples": table[EXAMPLES] if EXAMPLES in table.column_names else empty,
            "prompt": _strings(spec, "prompt", spec.prompt, rows, first),
            "choices": pa.array([json.dumps([*texts]) for texts in choices], pa.large_string()),
            "label": pa.array(right, pa.int64()),
        }
    )


def _right(where: str, column: str, label: object, texts: Sequence[str], keys: Sequence[Any] | None) -> int:
    """Return the place of the right choice. Raises UserError if there is none, or if a choice is empty."""
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(f"choice {number} of {where} is empty", "give a text for each choice")
    if (place := place_of(label, texts, keys)) is None:
        found = "no value" if label is None or label == "" else shown(label)
        if keys is None and is_ambiguous(label, texts):
            raise UserError(
                f"{where} has {found} in column '{column}', the text of one choice and the place of another",
                "write places as letters (A, B, …), or as JSON numbers, or change the texts",
            )
        raise UserError(f"{where} has {found} in column '{column}'", f"give {expected_label(texts, keys)}")
    return place


def _decoded(spec: DatasetSpec, table: pa.Table, first: int) -> list[dict[str, Any]]:
    """Return the rows, with the lists and objects of the nested columns."""
    rows = table.to_pylist()
    for column in spec.nested:
        for index, row in enumerate(rows, first):
            where = f"column '{column}' of row {index} of data set '{spec.name}'"
            try:
                row[column] = json.loads(row[column])
                check_characters(where, row[column])
            except (ValueError, RecursionError) as error:
                expected = 'give a list, in a csv file as JSON such as ["a", "b"]'
                raise UserError(f"{where} is no list ({error})", expected) from error
    return rows


def _strings(spec: DatasetSpec, name: str, function: Any, rows: list[dict[str, Any]], first: int) -> pa.Array:
    return pa.array(_results(spec, name, function, rows, first), pa.large_string())


def _are_texts(result: Any) -> bool:
    return isinstance(result, tuple | list) and all(isinstance(text, str) for text in result)


_TEXT: tuple[Callable[[Any], bool], str] = (lambda result: isinstance(result, str), "it must return text")
#: A function of the entry -> whether its result is right, and what is right.
_RETURNS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": _TEXT,
    "response": _TEXT,
    "header": _TEXT,
    "texts": (
        lambda result: _are_texts(result) and len(result) in (1, 2),
        "it must return the same number of texts, 1 or 2",
    ),
    "choices": (lambda result: _are_texts(result) and len(result) > 1, "it must return at least two texts"),
    "keys": (lambda result: isinstance(result, tuple | list), "it must return a list"),
}


def _results(spec: DatasetSpec, name: str, function: Any, rows: list[dict[str, Any]], first: int) -> list[Any]:
    """Return what a function of the entry, which is called `name`, returns for each row."""
    results: list[Any] = []
    is_right, expected = _RETURNS[name]
    for index, row in enumerate(rows, first):
        try:
            result = function(row)
        except UserError:
            raise
        except Exception as error:
            found = f"'{name}' of data set '{spec.name}' fails for row {index} ({type(error).__name__}: {error})"
            raise UserError(found, "correct the entry or the row") from error
        if not is_right(result) or (name == "texts" and results and len(result) != len(results[0])):
            raise UserError(f"'{name}' of data set '{spec.name}' returns {result!r} for row {index}", expected)
        results.append(result)
    return results
