"""The formats of files of rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from dataset.reading.columns import ColumnKind, check_present, fields_of
from dataset.reading.csv_files import Csv, Tsv
from dataset.reading.json_files import JsonArray, JsonLines
from dataset.reading.row_file import BATCH, RowFile
from dataset.spec import Wanted

VERSION = 3  # raise it when the same file gives other rows
_TEXT = "text"  # the column of a txt file


class Parquet(RowFile):
    """A parquet file."""

    def _columns(self) -> dict[str, ColumnKind]:
        return fields_of(parquet.read_schema(self.path))

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        with self.path.open("rb") as file, parquet.ParquetFile(file, page_checksum_verification=True) as rows:
            schema = rows.schema_arrow
            paths = [name for name in wanted.columns if name not in schema.names]  # of fields, such as `review.text`
            check_present(self.path, wanted, [*schema.names, *(fields_of(schema).keys() - {*schema.names})])
            whole = [schema.field(name).type for name in wanted.columns if name not in paths]
            if any(map(pa.types.is_dictionary, whole)):  # a batch would have a dictionary of its own
                yield _with_fields(rows.read(columns=wanted.columns), paths).select(wanted.columns)
                return
            for batch in rows.iter_batches(BATCH, columns=wanted.columns):
                table = _with_fields(pa.Table.from_batches([batch]), paths).select(wanted.columns)
                self._read += self.path.stat().st_size * len(batch) // rows.metadata.num_rows
                yield table.replace_schema_metadata(schema.metadata)

    def _finished(self, table: pa.Table, wanted: Wanted) -> pa.Table:
        if wanted.label is None or not pa.types.is_decimal(stored := table.schema.field(wanted.label).type):
            return table
        number = pa.int64() if stored.scale == 0 else pa.float64()  # databases export numbers as decimals
        place = table.column_names.index(wanted.label)
        return table.set_column(place, wanted.label, table[wanted.label].cast(number))

    def _all_rows(self) -> list[dict[str, Any]]:
        return parquet.read_table(self.path).to_pylist()


def _with_fields(table: pa.Table, paths: Sequence[str]) -> pa.Table:
    """Return the table with a column for each field of an object."""
    for path in paths:
        first, *rest = path.split(".")
        table = table.append_column(path, compute.struct_field(table[first].combine_chunks(), rest))
    return table


class Text(RowFile):
    """A txt file: its lines, with their line ends, are the column `text`."""

    def _columns(self) -> dict[str, ColumnKind]:
        return {_TEXT: "text"}

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        check_present(self.path, wanted, [_TEXT])
        with self.path.open(encoding="utf-8-sig") as lines:
            try:
                while part := [*islice(lines, BATCH)]:
                    self._read += sum(map(len, part))
                    yield pa.table({_TEXT: pa.array(part, pa.string())})
            except UnicodeDecodeError:
                deque(self._lines("give text in UTF-8"), maxlen=0)  # names the line
                raise

    def _all_rows(self) -> list[dict[str, Any]]:
        return [row for piece in self._pieces(Wanted((_TEXT,))) for row in piece.to_pylist()]


#: The keys are `dataset.reading.splits.SUFFIXES`.
FORMATS: Mapping[str, type[RowFile]] = {
    ".jsonl": JsonLines,
    ".json": JsonArray,
    ".csv": Csv,
    ".tsv": Tsv,
    ".parquet": Parquet,
    ".txt": Text,
}
