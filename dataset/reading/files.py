"""Reads the entry's columns from one file of rows. Every mistake in a file names its place.

JSON is parsed here and not by Arrow's reader, which ends the whole process for some files, such as one whose first line
is `null`, and does not say in which line a value has another type.
"""

from __future__ import annotations

import codecs
import io
import json
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from dataset.reading.content import empty, not_utf8, utf8, wanted_columns
from dataset.reading.csv_files import columns_of_csv, read_csv
from dataset.reading.kinds import ColumnKind, kind_of, kinds
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from heterolora.common.outside import reading

VERSION = 3  # raise it when the same file gives other rows

_LARGEST_LINE = 64 * 2**20  # bytes of a line of jsonl
_BATCH = 10_000
_FIRST = 100_000  # rows that are enough to see which columns a file has

_UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)  # what Arrow raises for a value of another type

TEXT = "text"  # the column of a txt file
Location = str  # such as "line 3"


def read_table(path: Path, spec: DatasetSpec) -> pa.Table:
    """Returns the text columns and the label column of a file.

    A text or label is null where the row has none. Raises UserError if the file is damaged, if a column is missing or
    occurs twice, or if a value is of another type.
    """
    with reading_file(path):
        if path.stat().st_size == 0:
            return _no_rows(spec.read_columns)
        table = READERS[path.suffix](path, spec)
        table.validate(full=True)  # damaged offsets would end the whole process when a text is read
        return table


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """Converts any exception of the block to a UserError about this file of rows."""
    expected = "write it again" if path.suffix == ".parquet" else f"give a {path.suffix[1:]} file in UTF-8"
    with reading("the file", path, expected):
        if not stat.S_ISREG(path.stat().st_mode):  # also of a folder, which `reading` allows
            raise UserError(f"'{path}' is not a regular file", expected)
        yield


def _jsonl(path: Path, spec: DatasetSpec) -> pa.Table:
    return _table(path, _lines(path), spec)


def _json(path: Path, spec: DatasetSpec) -> pa.Table:
    return _table(path, _objects(path), spec)


def _objects(path: Path) -> Iterator[tuple[Location, dict[str, Any]]]:
    """Yields the objects of an array. A `.json` file may also hold one object per line."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    if start != b"[":
        yield from _lines(path)
        return
    try:
        rows = _parsed(utf8(path))
    except (ValueError, RecursionError) as error:
        raise _not_json(f"'{path}' is not JSON", error, "give an array of objects") from error
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"row {index} of '{path}' is {_as_json(row)}", "each row is an object")
        yield f"row {index}", row


def _parquet(path: Path, spec: DatasetSpec) -> pa.Table:
    with path.open("rb") as file, parquet.ParquetFile(file, page_checksum_verification=True) as rows:
        table = rows.read(columns=wanted_columns(path, rows.schema_arrow.names, spec))
    if spec.label_column is None or not pa.types.is_decimal(stored := table.schema.field(spec.label_column).type):
        return table
    number = pa.int64() if stored.scale == 0 else pa.float64()  # databases export numbers as decimals
    place = table.column_names.index(spec.label_column)
    return table.set_column(place, spec.label_column, table[spec.label_column].cast(number))


def _txt(path: Path, spec: DatasetSpec) -> pa.Table:
    """Reads the lines of a text, with their line ends, as the column `text`."""
    lines = pa.table({TEXT: pa.array(io.StringIO(utf8(path), newline=None), pa.string())})
    return lines.select(wanted_columns(path, lines.column_names, spec))


READERS: Mapping[str, Callable[[Path, DatasetSpec], pa.Table]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".parquet": _parquet,
    ".txt": _txt,
}


def columns_of(path: Path) -> dict[str, ColumnKind]:
    """Returns the columns of a file, from its first rows if it is long. Raises UserError if it is empty or damaged."""
    with reading_file(path):
        if path.stat().st_size == 0:
            raise empty(path)
        if path.suffix == ".txt":
            return {TEXT: "text"}
        if path.suffix == ".parquet":
            return kinds(parquet.read_schema(path))
        if path.suffix in (".csv", ".tsv"):
            return columns_of_csv(path)
        rows = _objects(path) if path.suffix == ".json" else _lines(path)
        found: dict[str, ColumnKind] = {}
        for _, row in islice(rows, _FIRST):
            found |= {name: kind_of(value) for name, value in row.items() if value is not None or name not in found}
        if not found:
            raise empty(path)
        return found


def _not_json(found: str, error: Exception, expected: str) -> UserError:
    reason = str(error)
    if isinstance(error, json.JSONDecodeError):
        reason = f"{error.msg} at character {error.pos + 1}"
    return UserError(f"{found} ({reason[:200]})", expected)


def _lines(path: Path) -> Iterator[tuple[Location, dict[str, Any]]]:
    """Yields the objects of a jsonl file, one from each line that is not blank."""
    number, one_object = 0, "each line is one JSON object, such as {…}"
    with path.open("rb") as file:
        while line := file.readline(_LARGEST_LINE + 1):
            number += 1
            where = f"line {number} of '{path}'"
            if len(line) > _LARGEST_LINE:
                raise UserError(f"{where} has more than {_LARGEST_LINE:,} bytes", one_object)
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if not text.strip():
                    continue
                row = _parsed(text)
            except UnicodeDecodeError as error:
                raise not_utf8(where) from error
            except (ValueError, RecursionError) as error:
                raise _not_json(f"{where} is not JSON", error, one_object) from error
            if not isinstance(row, dict):
                raise UserError(f"{where} is {_as_json(row)}", one_object)
            yield f"line {number}", row


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice!r} occurs twice")
    return made


def _table(path: Path, rows: Iterator[tuple[Location, dict[str, Any]]], spec: DatasetSpec) -> pa.Table:
    """Returns the columns of JSON rows. A key that a row lacks is null."""
    names, present, batches = spec.read_columns, set(), []
    while part := list(islice(rows, _BATCH)):
        present.update(*(row.keys() for _, row in part))
        placed = {name: [(place, row.get(name)) for place, row in part] for name in names}
        for name in spec.nested:
            placed[name] = [(place, _as_text(value)) for place, value in placed[name]]
        batches.append(pa.table({name: _array(path, name, placed[name], name in spec.columns) for name in names}))
    if not batches:
        return _no_rows(names)
    wanted_columns(path, sorted(present), spec)
    return joined(batches)


def _as_text(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _no_rows(names: Sequence[str]) -> pa.Table:
    return pa.table({name: pa.array([], pa.string()) for name in names})


def joined(tables: list[pa.Table]) -> pa.Table:
    """Returns the rows of all tables. A column of whole numbers and one of real numbers make one of real numbers."""
    return pa.concat_tables(tables, promote_options="permissive")


def _array(path: Path, name: str, placed: list[tuple[Location, Any]], is_text: bool) -> pa.Array:
    """Returns a column. Raises UserError at the first value of another type."""
    values = [value for _, value in placed]
    kind = (
        pa.string() if is_text else _label_type([*dict.fromkeys(type(value) for value in values if value is not None)])
    )
    try:
        return pa.array(values, kind)
    except _UNFIT:
        for place, value in placed:
            try:
                pa.array([value], kind)
            except _UNFIT as error:
                what = f"{_as_json(value)} in column '{name}'" if is_text else f"label {_as_json(value)}"
                expected = "it must hold text" if is_text else "labels are all names, or all numbers below 2^63"
                raise UserError(f"{place} of '{path}' has {what}", expected) from error
        raise


def _label_type(kinds: list[type]) -> pa.DataType:
    """Returns the Arrow type for labels of these Python types. If they do not agree, the first one decides."""
    if set(kinds) <= {bool}:
        return pa.bool_() if kinds else pa.null()
    if kinds[0] is str:
        return pa.string()
    return pa.float64() if float in kinds else pa.int64()


def _as_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
