"""csv and tsv files. A file is parsed once, as text, and Arrow then finds the types of its columns.

Python's parser says which line is wrong. Arrow's would join the rows between two quotation marks that belong to the
text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from dataset.reading.columns import ColumnKind, check_present, kinds_of
from dataset.reading.row_file import BATCH, FIRST, RowFile, empty, no_rows
from dataset.spec import Wanted
from heterolora.common.errors import UserError, shown

_ENDS = "\r\n"
_LARGEST_CELL = 2**30  # characters
_CODE = r"^\s*[+-]?0[0-9xX]|^\s*[0-9]+[eE][0-9]+\s*$"  # of a label: 01, 0x1F and 1E5 are names, and no numbers


class Csv(RowFile):
    """A csv file with a header. `table` goes on where `columns` has stopped."""

    mark, mark_name, other_marks = ",", "comma", ";\t|"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._begun: Iterator[pa.Table] | None = None  # what `columns` has read, and the rest of the file

    def _columns(self) -> dict[str, ColumnKind]:
        batches = self._batches()
        head = [*islice(batches, 1 + FIRST // BATCH)]
        self._begun = chain(head, batches)
        schema = _typed(pa.concat_tables(head)).schema
        if all(map(pa.types.is_null, schema.types)):
            raise empty(self.path)
        self._check_mark(schema.names)
        return kinds_of(schema)

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield the wanted columns. Texts are text whatever they look like, and an empty cell is no null."""
        batches, self._begun = self._begun or self._batches(), None
        head = [*islice(batches, 2)]  # rows of another width than the header are named before a missing column
        check_present(self.path, wanted, head[0].column_names)
        yield from (batch.select(wanted.columns) for batch in chain(head, batches))

    def _finished(self, table: pa.Table, wanted: Wanted) -> pa.Table:
        if wanted.label is None:
            return table
        labels = _labels(table.select([wanted.label]), wanted.label_may_be_text)
        return table.set_column(table.num_columns - 1, wanted.label, labels)

    def _all_rows(self) -> list[dict[str, Any]]:
        return [row for batch in self._batches() for row in batch.to_pylist()]

    def _batches(self) -> Iterator[pa.Table]:
        """Yield the rows as text, after a table of the header without rows."""
        rows = self._rows()
        if not (header := _next(rows, 1)):
            raise empty(self.path)
        yield no_rows(header[0])
        while part := _next(rows, BATCH):
            cells = (pa.array(column, pa.string()) for column in zip(*part, strict=True))
            yield pa.Table.from_arrays([*cells], names=header[0])

    def _rows(self) -> Iterator[list[str]]:
        """Yield the cells of the header and of each row. Blank lines are no rows."""
        lines: list[str] = []  # of the row
        rows = csv.reader(self._texts(lines), delimiter=self.mark, strict=True)
        header: list[str] = []
        try:
            for number, row in enumerate(filter(None, rows), 1):
                header = header or row
                if len(row) != len(header):
                    raise UserError(
                        f"row {number} of '{self.path}' (the header is row 1) has {len(row)} columns, and the header "
                        f"has {len(header)}: {shown(''.join(lines).strip(_ENDS))[:80]}",
                        f"separate columns by a {self.mark_name}, and put text that holds a {self.mark_name} into "
                        "quotation marks",
                    )
                if self.mark == "\t" and any("\t" in cell for cell in row):
                    raise UserError(
                        f"line {rows.line_num} of '{self.path}': a cell between quotation marks holds a tab",
                        "write a quotation mark that belongs to the text twice, in a cell between quotation marks",
                    )
                yield row
                lines.clear()
        except csv.Error as error:
            self._check_mark(header)
            raise UserError(
                f"line {rows.line_num} of '{self.path}': {error}",
                "a cell that begins with a quotation mark ends with one, and others inside are written twice",
            ) from error

    def _texts(self, taken: list[str]) -> Iterator[str]:
        """Yield the lines, and append them to `taken`."""
        for number, text in self._lines("put each row on a line of its own"):
            if "\0" in text:
                raise UserError(f"line {number} of '{self.path}' holds a NUL byte", "give text in UTF-8")
            for line in io.StringIO(text, newline="") if "\r" in text else (text,):  # old files end their lines with it
                taken.append(line)
                yield line

    def _check_mark(self, header: list[str]) -> None:
        """Raise UserError if the only name in the header holds another mark between columns."""
        if len(header) == 1 and (wrong := next((mark for mark in self.other_marks if mark in header[0]), None)):
            raise UserError(
                f"'{self.path}' has one column, {shown(header[0])[:60]}",
                f"separate columns by a {self.mark_name}, not by {wrong!r}",
            )


class Tsv(Csv):
    """A tsv file. A tab between quotation marks says that the marks belong to the text."""

    mark, mark_name, other_marks = "\t", "tab", ",;|"


def _typed(texts: pa.Table) -> pa.Table:
    """Return the columns with the types that Arrow's reader finds in all of their cells. An empty cell has no type."""
    written = pa.BufferOutputStream()
    arrow_csv.write_csv(texts, written)
    content = written.getvalue()
    return arrow_csv.read_csv(
        pa.BufferReader(content),
        # One block, so that the type of a column does not depend on its first rows alone.
        arrow_csv.ReadOptions(use_threads=False, block_size=len(content) + 1),
        arrow_csv.ParseOptions(newlines_in_values=True),
        arrow_csv.ConvertOptions(strings_can_be_null=False),
    )


def _labels(texts: pa.Table, may_be_text: bool) -> pa.ChunkedArray:
    """Return the labels with the type of their cells, or as text if one is a code such as 01.

    `may_be_text`: a whole number may be the text of a choice or its place, and only text is checked for that.
    """
    typed = _typed(texts)
    (kind,) = kinds_of(typed.schema).values()
    if kind == "whole numbers" and may_be_text:
        return texts[0]
    is_number = kind in ("whole numbers", "real numbers")
    return texts[0] if is_number and pc.any(pc.match_substring_regex(texts[0], _CODE)).as_py() else typed[0]


def _next(rows: Iterator[list[str]], count: int) -> list[list[str]]:
    """Return the next rows of a csv reader, which takes long cells here only."""
    longest = csv.field_size_limit(_LARGEST_CELL)
    try:
        return list(islice(rows, count))
    finally:
        csv.field_size_limit(longest)
