"""Writes rows as csv, jsonl or parquet, completely or not at all, or as JSON lines to standard output."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
from pyarrow import parquet

from heterolora.common.errors import UserError
from heterolora.common.files import whole

Rows = Sequence[Mapping[str, Any]]


@contextmanager
def standard_output(is_taken: bool) -> Iterator[TextIO]:
    """The stream for predictions. If it `is_taken` by them, everything else that is printed goes to standard error."""
    stream = sys.stdout
    if not is_taken:
        yield stream
        return
    with redirect_stdout(sys.stderr):
        yield stream


def check_columns(path: Path, rows: Rows) -> None:
    """Raise UserError if a file with the ending of `path` cannot hold the columns of the rows."""
    if path.suffix == ".parquet":
        _arrow(rows)


def write_rows(path: Path, rows: Rows) -> None:
    """Write a file in the format of its ending. Raises UserError if it cannot be written."""
    with whole(path) as unfinished:
        WRITERS[path.suffix](unfinished, rows)


def write_lines(stream: TextIO, rows: Rows) -> None:
    """Write a JSON object for each row."""
    for row in rows:
        stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _csv(path: Path, rows: Rows) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_cell(row.get(name)) for name in names] for row in rows)


def _cell(value: Any) -> Any:
    """A value in a csv file: lists and objects as JSON, and no value as an empty cell."""
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else value


def _jsonl(path: Path, rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        write_lines(file, rows)


def _parquet(path: Path, rows: Rows) -> None:
    parquet.write_table(_arrow(rows), path)


def _arrow(rows: Rows) -> pa.Table:
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            found = f"column '{name}' holds values of several types, which parquet cannot"
            raise UserError(found, "give --output a jsonl or csv file") from error
    return pa.table(columns)


#: The keys are `options.predicting.ENDINGS`.
WRITERS: Mapping[str, Callable[[Path, Rows], None]] = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
