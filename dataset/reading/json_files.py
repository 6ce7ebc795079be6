"""Files of JSON objects.

JSON is parsed here and not by Arrow's reader, which ends the whole process for some files, such as one whose first line
is `null`, and does not say in which line a value has another type.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pyarrow as pa

from dataset.reading.columns import ColumnKind, check_present, kind_of_json
from dataset.reading.row_file import BATCH, FIRST, RowFile, empty
from dataset.spec import Wanted
from heterolora.common.errors import UserError

_ONE_OBJECT = "each line is one JSON object, such as {…}"
_LABELS = "labels are all names, or all numbers below 2^63, or all lists of names"
_UNFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)  # what Arrow raises for a value of another type

Location = str  # such as "line 3"


class JsonLines(RowFile):
    """A jsonl file: one object in each line that is not blank."""

    def _columns(self) -> dict[str, ColumnKind]:
        found: dict[str, ColumnKind] = {}
        for _, row in islice(self._rows(), FIRST):
            found |= {
                name: kind_of_json(value) for name, value in _fields(row) if value is not None or name not in found
            }
        if not found:
            raise empty(self.path)
        return found

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the wanted columns. A key that a row lacks is null."""
        rows, present, found = self._rows(), set[str](), False
        while part := list(islice(rows, BATCH)):
            found = True
            present.update(*(row.keys() for _, row in part))
            present.update(name for name in wanted.columns if any(_value(row, name) is not None for _, row in part))
            yield pa.table({name: self._array(name, part, wanted) for name in wanted.columns})
        if found:
            check_present(self.path, wanted, sorted(present))

    def _all_rows(self) -> list[dict[str, Any]]:
        return [row for _, row in self._rows()]

    def _rows(self) -> Iterator[tuple[Location, dict[str, Any]]]:
        for number, text in self._lines(_ONE_OBJECT):
            if text.strip():
                where = f"line {number} of '{self.path}'"
                row = _parsed(text, where, _ONE_OBJECT)
                if not isinstance(row, dict):
                    raise UserError(f"{where} is {_shown(row)}", _ONE_OBJECT)
                yield f"line {number}", row

    def _array(self, name: str, rows: list[tuple[Location, dict[str, Any]]], wanted: Wanted) -> pa.Array:
        """Return a column. Raises UserError at the first value of another type."""
        values = [_value(row, name) for _, row in rows]
        as_json = (list, dict) if name in wanted.nested else (list,) if name == wanted.label else ()  # several labels
        values = [json.dumps(value) if isinstance(value, as_json) else value for value in values]
        is_text = name in wanted.texts
        kind = pa.string() if is_text else _label_type(values)
        try:
            return pa.array(values, kind)
        except _UNFIT:
            for (place, row), value in zip(rows, values, strict=True):
                try:
                    pa.array([value], kind)
                except _UNFIT as error:
                    what = f"{_shown(value)} in column '{name}'" if is_text else f"label {_shown(_value(row, name))}"
                    expected = "it must hold text" if is_text else _LABELS
                    raise UserError(f"{place} of '{self.path}' has {what}", expected) from error
            raise


class JsonArray(JsonLines):
    """A json file: an array of objects, or one object per line."""

    def _rows(self) -> Iterator[tuple[Location, dict[str, Any]]]:
        with self.path.open("rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        if start != b"[":
            yield from super()._rows()
            return
        for index, row in enumerate(_parsed(self._text(), f"'{self.path}'", "give an array of objects")):
            if not isinstance(row, dict):
                raise UserError(f"row {index} of '{self.path}' is {_shown(row)}", "each row is an object")
            yield f"row {index}", row


def _fields(row: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a row, and those of the objects in it with their paths, such as `review.text`."""
    for name, value in row.items():
        yield name, value
        if isinstance(value, dict):
            yield from ((f"{name}.{path}", each) for path, each in _fields(value))


def _value(row: dict[str, Any], path: str) -> Any:
    """The value of a column, or of a field by its path; None if there is none."""
    if path in row or "." not in path:
        return row.get(path)
    first, _, rest = path.partition(".")
    return _value(inside, rest) if isinstance(inside := row.get(first), dict) else None


def _parsed(text: str, where: str, expected: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} at character {error.pos + 1}"
        raise UserError(f"{where} is not JSON ({reason[:200]})", expected) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice!r} occurs twice")
    return made


def _label_type(values: list[Any]) -> pa.DataType:
    """Return the Arrow type for these labels. If their types do not agree, the first one decides."""
    types = [*dict.fromkeys(type(value) for value in values if value is not None)]
    if {*types} <= {bool}:
        return pa.bool_() if types else pa.null()
    if types[0] is str:
        return pa.string()
    return pa.float64() if float in types else pa.int64()


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_characters(where: str, value: Any) -> None:
    """Raise UserError if a text in a JSON value holds one half of a surrogate pair without the other.

    JSON can write half of a character, which no file in UTF-8 and no tokenizer takes.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = f"{where} holds {error.object[error.start]!a}, which is half of a character"
        raise UserError(found, "write the whole character, or leave it out") from error
