"""The formats of files of rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import islice

import pyarrow as pa
from pyarrow import parquet

from dataset.reading.columns import ColumnKind, check_present, kinds_of
from dataset.reading.csv_files import Csv, Tsv
from dataset.reading.json_files import JsonArray, JsonLines
from dataset.reading.row_file import BATCH, RowFile
from dataset.spec import Wanted

VERSION = 3  # raise it when the same file gives other rows
_TEXT = "text"  # the column of a txt file


class Parquet(RowFile):
    """A parquet file."""

    def _columns(self) -> dict[str, ColumnKind]:
        return kinds_of(parquet.read_schema(self.path))

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        with self.path.open("rb") as file, parquet.ParquetFile(file, page_checksum_verification=True) as rows:
            schema = rows.schema_arrow
            check_present(self.path, wanted, schema.names)
            if any(pa.types.is_dictionary(schema.field(name).type) for name in wanted.columns):
                yield rows.read(columns=wanted.columns)  # a batch would have a dictionary of its own
                return
            for batch in rows.iter_batches(BATCH, columns=wanted.columns):
                yield pa.Table.from_batches([batch]).select(wanted.columns).replace_schema_metadata(schema.metadata)

    def _finished(self, table: pa.Table, wanted: Wanted) -> pa.Table:
        if wanted.label is None or not pa.types.is_decimal(stored := table.schema.field(wanted.label).type):
            return table
        number = pa.int64() if stored.scale == 0 else pa.float64()  # databases export numbers as decimals
        place = table.column_names.index(wanted.label)
        return table.set_column(place, wanted.label, table[wanted.label].cast(number))


class Text(RowFile):
    """A txt file: its lines, with their line ends, are the column `text`."""

    def _columns(self) -> dict[str, ColumnKind]:
        return {_TEXT: "text"}

    def _pieces(self, wanted: Wanted) -> Iterator[pa.Table]:
        check_present(self.path, wanted, [_TEXT])
        with self.path.open(encoding="utf-8-sig") as lines:
            try:
                while part := [*islice(lines, BATCH)]:
                    yield pa.table({_TEXT: pa.array(part, pa.string())})
            except UnicodeDecodeError:
                deque(self._lines("give text in UTF-8"), maxlen=0)  # names the line
                raise


#: The keys are `dataset.reading.splits.SUFFIXES`.
FORMATS: Mapping[str, type[RowFile]] = {
    ".jsonl": JsonLines,
    ".json": JsonArray,
    ".csv": Csv,
    ".tsv": Tsv,
    ".parquet": Parquet,
    ".txt": Text,
}
