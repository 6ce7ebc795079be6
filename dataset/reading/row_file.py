"""A file of rows. Each format is a class that says how its columns and its rows are read."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from dataset.reading.columns import ColumnKind
from dataset.reading.content import empty
from dataset.spec import Wanted
from heterolora.common.errors import UserError
from heterolora.common.outside import reading

BATCH = 10_000  # rows that are converted at once
FIRST = 100_000  # rows that are enough to see which columns a file has


class RowFile:
    """One file of rows. Every mistake in it raises a UserError that names its place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def columns(self) -> dict[str, ColumnKind]:
        """Returns what each column holds, from the first rows if the file is long."""
        with self.opened():
            if self.path.stat().st_size == 0:
                raise empty(self.path)
            return self._columns()

    def table(self, wanted: Wanted) -> pa.Table:
        """Returns the wanted columns. A text or label is null where a row has none."""
        with self.opened():
            table = self._table(wanted) if self.path.stat().st_size else no_rows(wanted.columns)
            table.validate(full=True)  # damaged offsets would end the whole process when a text is read
            return table

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Converts any exception of the block to a UserError about this file."""
        suffix = self.path.suffix
        expected = "write it again" if suffix == ".parquet" else f"give a {suffix[1:]} file in UTF-8"
        with reading("the file", self.path, expected):
            if not stat.S_ISREG(self.path.stat().st_mode):  # also of a folder, which `reading` allows
                raise UserError(f"'{self.path}' is not a regular file", expected)
            yield

    def _columns(self) -> dict[str, ColumnKind]:
        raise NotImplementedError

    def _table(self, wanted: Wanted) -> pa.Table:
        raise NotImplementedError


def no_rows(names: Sequence[str]) -> pa.Table:
    return pa.Table.from_arrays([pa.array([], pa.string()) for _ in names], names=[*names])


def joined(tables: list[pa.Table]) -> pa.Table:
    """Returns the rows of all tables. A column of whole numbers and one of real numbers make one of real numbers."""
    return pa.concat_tables(tables, promote_options="permissive")
