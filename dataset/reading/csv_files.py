"""Reads csv and tsv files with Arrow, and refuses what it would read in another way than it is meant."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from dataset.reading.content import LARGEST_FILE, empty, line_of, utf8, wanted_columns
from dataset.reading.kinds import ColumnKind, kinds
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, shown

_BLOCK = 64 * 2**20  # bytes of the start of a file, which must hold its first row
_CODE = r"^\s*[+-]?0[0-9xX]|^\s*[0-9]+[eE][0-9]+\s*$"  # of a label: 01, 0x1F and 1E5 are names, and no numbers


def read_csv(path: Path, spec: DatasetSpec, delimiter: str = ",") -> pa.Table:
    """Reads a csv file with a header. Text columns are text whatever they look like, and an empty cell is no null."""
    text = utf8(path)
    content = text.encode()
    if (nul := content.find(b"\0")) >= 0:
        raise UserError(f"line {line_of(content, nul)} of '{path}' holds a NUL byte", "give text in UTF-8")
    table = _parsed(path, content, delimiter, spec.columns)
    _check_quotes(path, text, delimiter)
    table = table.select(wanted_columns(path, table.column_names, spec))
    if spec.label_column is None or kinds(table.schema)[spec.label_column] not in ("whole numbers", "real numbers"):
        return table
    as_text = _parsed(path, content, delimiter, [spec.label_column])[spec.label_column]
    # A whole number may be the text of a choice or its place. Only text is checked for that.
    may_be_text = spec.own and spec.choices is not None and pa.types.is_integer(table[spec.label_column].type)
    if not (may_be_text or pc.any(pc.match_substring_regex(as_text, _CODE)).as_py()):
        return table
    return table.set_column(table.column_names.index(spec.label_column), spec.label_column, as_text)


def _parsed(path: Path, content: bytes, delimiter: str, texts: Sequence[str]) -> pa.Table:
    with _parsing(path, delimiter) as parse_options:
        return arrow_csv.read_csv(
            pa.BufferReader(content),
            # One block, so that the type of a column does not depend on its first rows alone.
            arrow_csv.ReadOptions(use_threads=False, block_size=len(content) + 1),
            parse_options,
            arrow_csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string()), strings_can_be_null=False),
        )


def columns_of_csv(path: Path) -> dict[str, ColumnKind]:
    """Returns the columns, from the first rows. Raises UserError if it has none, or if another mark separates them."""
    utf8(path)  # pyarrow cannot show a row that is no text
    with _parsing(path, "\t" if path.suffix == ".tsv" else ",") as parse_options:
        schema = arrow_csv.open_csv(
            path,
            arrow_csv.ReadOptions(use_threads=False, block_size=_BLOCK),
            parse_options,
            arrow_csv.ConvertOptions(strings_can_be_null=False),
        ).schema
    if all(map(pa.types.is_null, schema.types)):
        raise empty(path)
    separators = {".csv": ("comma", ";\t|"), ".tsv": ("tab", ",;|")}
    right, wrong = separators[path.suffix]
    if len(schema) == 1 and (mark := next((mark for mark in wrong if mark in schema.names[0]), None)):
        raise UserError(
            f"'{path}' has one column, {shown(schema.names[0])[:60]}", f"separate columns by a {right}, not by {mark!r}"
        )
    return kinds(schema)


def _check_quotes(path: Path, text: str, delimiter: str) -> None:
    """Raise UserError if a cell goes on after its closing quotation mark, or if one of a tsv file holds a tab. Then the
    marks belong to the text, and Arrow would join the rows between two of them.
    """
    if '"' not in text:
        return
    longest = csv.field_size_limit(LARGEST_FILE)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            if delimiter == "\t" and any("\t" in cell for cell in row):
                raise UserError(
                    f"line {rows.line_num} of '{path}': a cell between quotation marks holds a tab",
                    "write a quotation mark that belongs to the text twice, in a cell between quotation marks",
                )
    except csv.Error as error:
        raise UserError(
            f"line {rows.line_num} of '{path}': {error}",
            "a cell that begins with a quotation mark ends with one, and others inside are written twice",
        ) from error
    finally:
        csv.field_size_limit(longest)


@contextmanager
def _parsing(path: Path, delimiter: str) -> Iterator[arrow_csv.ParseOptions]:
    """The options to parse a csv file. Raises UserError if the block finds a row of another width than the header."""
    wrong: list[arrow_csv.InvalidRow] = []

    def refuse(row: arrow_csv.InvalidRow) -> str:
        wrong.append(row)
        return "error"

    try:
        yield arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse)
    except pa.ArrowInvalid as error:
        if not wrong:
            raise
        row, mark = wrong[0], "tab" if delimiter == "\t" else "comma"
        raise UserError(
            f"row {row.number} of '{path}' (the header is row 1) has {row.actual_columns} columns, and the header has "
            f"{row.expected_columns}: {shown(row.text)[:80]}",
            f"separate columns by a {mark}, and put text that holds a {mark} into quotation marks",
        ) from error
