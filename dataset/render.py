"""The texts that are encoded: the columns of a row, or what the entry's functions make of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
from datasets import Dataset

from dataset.spec import DatasetSpec
from heterolora.errors import UserError

_BATCH = 10_000


def render(spec: DatasetSpec, rows: pa.Table, first: int = 0) -> pa.Table:
    """Returns the texts of some rows of a split, and the column `label` for classification.

    The texts are in the columns `prompt` and `response`, or `text`, or `text` and `pair`.

    Args:
        spec: the data set.
        rows: the entry's columns.
        first: number of the first row, for error messages.

    Raises UserError if a function of the entry fails, or returns anything but texts.
    """
    if spec.prompt is not None:
        texts = {name: _strings(spec, name, rows, first) for name in ("prompt", "response")}
    elif spec.texts is not None:
        pairs = _results(spec, "texts", rows, first, _is_texts, "it must return the same number of texts, 1 or 2")
        texts = {name: pa.array(column, pa.large_string()) for name, column in _named(zip(*pairs, strict=True))}
    else:
        texts = dict(_named(rows[column] for column in spec.columns))
    return pa.table({**texts, "label": rows[spec.label]} if spec.task == "classification" else texts)


def rendered(rows: Dataset, spec: DatasetSpec) -> Iterator[pa.Table]:
    """Yields the texts of a split in batches."""
    first = 0
    for batch in rows.with_format("arrow").iter(_BATCH):
        yield render(spec, batch, first)
        first += len(batch)


def _named(columns: Any) -> Iterator[tuple[str, Any]]:
    return zip(("text", "pair"), columns, strict=False)


def _strings(spec: DatasetSpec, name: str, rows: pa.Table, first: int) -> pa.Array:
    return pa.array(_results(spec, name, rows, first, _is_text, "it must return text"), pa.large_string())


def _is_text(result: object, _: list[Any]) -> bool:
    return isinstance(result, str)


def _is_texts(result: object, earlier: list[Any]) -> bool:
    several = isinstance(result, tuple | list) and all(isinstance(text, str) for text in result)
    return several and len(result) in ({len(earlier[0])} if earlier else {1, 2})


def _results(
    spec: DatasetSpec,
    name: str,
    rows: pa.Table,
    first: int,
    valid: Callable[[object, list[Any]], bool],
    expected: str,
) -> list[Any]:
    """Returns what the function `name` of the entry returns for each row."""
    results: list[Any] = []
    for index, row in enumerate(rows.to_pylist(), first):
        try:
            result = getattr(spec, name)(row)
        except UserError:
            raise
        except Exception as error:
            found = f"'{name}' of data set '{spec.name}' fails for row {index} ({type(error).__name__}: {error})"
            raise UserError(found, "correct the entry or the row") from error
        if not valid(result, results):
            raise UserError(f"'{name}' of data set '{spec.name}' returns {result!r} for row {index}", expected)
        results.append(result)
    return results
