"""A file of rows. Each format is a class that says how its columns and its rows are read."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets.utils import tqdm

from dataset.reading.columns import ColumnKind
from dataset.spec import Wanted
from heterolora.common.errors import UserError
from heterolora.common.outside import reading

Gather = Callable[[Iterable[pa.Table]], pa.Table]  # the rows of all tables

BATCH = 10_000  # rows that are converted at once
FIRST = 100_000  # rows that are enough to see which columns a file has
_LARGEST_FILE = 2**30  # bytes of a JSON array, which are read at once
_LARGEST_LINE = 64 * 2**20  # bytes
_SMALLER = "divide it into train-00000-of-00002 and so on, or write it as jsonl or parquet"


class RowFile:
    """One file of rows. Every mistake in it raises a UserError that names its place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0  # bytes

    def columns(self) -> dict[str, ColumnKind]:
        """Return what each column holds, from the first rows if the file is long."""
        with self.opened():
            if self.path.stat().st_size == 0:
                raise empty(self.path)
            return self._columns()

    def table(self, wanted: Wanted, gather: Gather | None = None) -> pa.Table:
        """Return the wanted columns. A text or label is null where a row has none.

        `gather` joins the tables that the file is read in, by default in memory.
        """
        with self.opened():
            pieces = self._pieces(wanted) if self.path.stat().st_size else iter(())
            if (first := next(pieces, None)) is None:
                return no_rows(wanted.columns)
            table = self._finished((gather or joined)(self._counted(chain([first], pieces))), wanted)
            table.validate(full=True)  # damaged offsets would end the whole process when a text is read
            return table

    def rows(self) -> list[dict[str, Any]]:
        """Return all columns, with the values as the file has them."""
        with self.opened():
            return self._all_rows() if self.path.stat().st_size else []

    def _counted(self, pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the pieces, and show on a terminal how much of the file is read, and the time that is left."""
        size = self.path.stat().st_size
        with tqdm(total=size, unit="B", unit_scale=True, desc=f"reading {self.path.name}", delay=1) as bar:
            for piece in pieces:
                bar.update(min(self._read, size) - bar.n)
                yield piece

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Convert any exception of the block to a UserError about this file."""
        suffix = self.path.suffix
        expected = "write it again" if suffix == ".parquet" else f"give a {suffix[1:]} file in UTF-8"
        with reading("the file", self.path, expected):
            if not stat.S_ISREG(self.path.stat().st_mode):  # also of a folder, which `reading` allows
                raise UserError(f"'{self.path}' is not a regular file", expected)
            yield

    def _columns(self) -> dict[str, ColumnKind]:
        raise NotImplementedError

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        """Yield tables of the wanted columns."""
        raise NotImplementedError

    def _all_rows(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def _finished(self, table: pa.Table, wanted: Wanted) -> pa.Table:
        """Return the rows of all pieces with the final type of the label."""
        return table

    def _text(self) -> str:
        """Return the text of the file, without a byte order mark."""
        size = self.path.stat().st_size
        if size > _LARGEST_FILE:
            raise UserError(f"'{self.path}' has {size:,} bytes, more than the {_LARGEST_FILE:,} allowed", _SMALLER)
        content = self.path.read_bytes()
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self._not_utf8(content.count(b"\n", 0, error.start) + 1) from error

    def _lines(self, each: str) -> Iterator[tuple[int, str]]:
        """Yield the number of each line from 1, and its text. `each` says what a line is."""
        number = 0
        with self.path.open("rb") as file:
            while line := file.readline(_LARGEST_LINE + 1):
                number += 1
                self._read += len(line)
                if len(line) > _LARGEST_LINE:
                    raise UserError(f"line {number} of '{self.path}' has more than {_LARGEST_LINE:,} bytes", each)
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise self._not_utf8(number) from error

    def _not_utf8(self, line: int) -> UserError:
        return UserError(f"line {line} of '{self.path}' is not UTF-8 text", "convert the file to UTF-8")


def empty(found: object) -> UserError:
    return UserError(f"{found} is empty", "give it at least one row")


def no_rows(names: Sequence[str]) -> pa.Table:
    return pa.Table.from_arrays([pa.array([], pa.string()) for _ in names], names=[*names])


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Return the rows of all tables. A column of whole numbers and one of real numbers make one of real numbers."""
    return pa.concat_tables([*tables], promote_options="permissive")


def spooled(place: Path, tables: Iterable[pa.Table]) -> pa.Table:
    """Return what `joined` returns, memory-mapped from files, whose names begin with that of `place`.

    The tables of one file have the same columns, so that one is needed where a type changes.
    """
    paths: list[Path] = []
    rest = iter(tables)
    following = next(rest, None)
    while following is not None:
        paths.append(place.with_name(f"{place.name}.{len(paths)}"))
        following = _write_alike(paths[-1], following, rest)
    return joined(pa.ipc.open_stream(pa.memory_map(str(path))).read_all() for path in paths)


def _write_alike(path: Path, first: pa.Table, rest: Iterator[pa.Table]) -> pa.Table | None:
    """Write the first table and those after it with the same columns. Returns the next one, or None."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, first.schema) as stream:
        stream.write_table(first)
        for table in rest:
            if not table.schema.equals(first.schema, check_metadata=True):
                return table
            stream.write_table(table)
    return None
