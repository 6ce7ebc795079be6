"""The formats of files of rows."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import compute, parquet

from dataset.reading.columns import ColumnKind, check_present, fields_of
from dataset.reading.csv_files import Csv, Tsv
from dataset.reading.json_files import JsonArray, JsonLines
from dataset.reading.row_file import RowFile
from dataset.spec import Wanted

VERSION = 3  # raise it when the same file gives other rows
_TEXT = "text"  # the column of a txt file


class Parquet(RowFile):
    """A parquet file."""

    def _columns(self) -> dict[str, ColumnKind]:
        return fields_of(parquet.read_schema(self.path))

    def _table(self, wanted: Wanted) -> pa.Table:
        with self.path.open("rb") as file, parquet.ParquetFile(file, page_checksum_verification=True) as rows:
            names = rows.schema_arrow.names
            paths = [name for name in wanted.columns if name not in names]  # of fields, such as `review.text`
            check_present(self.path, wanted, [*names, *(fields_of(rows.schema_arrow).keys() - {*names})])
            table = rows.read(columns=wanted.columns)
            for path in paths:
                first, *rest = path.split(".")
                table = table.append_column(path, compute.struct_field(table[first].combine_chunks(), rest))
            table = table.select(wanted.columns)
        if wanted.label is None or not pa.types.is_decimal(stored := table.schema.field(wanted.label).type):
            return table
        number = pa.int64() if stored.scale == 0 else pa.float64()  # databases export numbers as decimals
        place = table.column_names.index(wanted.label)
        return table.set_column(place, wanted.label, table[wanted.label].cast(number))

    def _all_rows(self) -> list[dict[str, Any]]:
        return parquet.read_table(self.path).to_pylist()


class Text(RowFile):
    """A txt file: its lines, with their line ends, are the column `text`."""

    def _columns(self) -> dict[str, ColumnKind]:
        return {_TEXT: "text"}

    def _table(self, wanted: Wanted) -> pa.Table:
        check_present(self.path, wanted, [_TEXT])
        return pa.table({_TEXT: pa.array(io.StringIO(self._text(), newline=None), pa.string())})

    def _all_rows(self) -> list[dict[str, Any]]:
        return self._table(Wanted((_TEXT,))).to_pylist()


#: The keys are `dataset.reading.splits.SUFFIXES`.
FORMATS: Mapping[str, type[RowFile]] = {
    ".jsonl": JsonLines,
    ".json": JsonArray,
    ".csv": Csv,
    ".tsv": Tsv,
    ".parquet": Parquet,
    ".txt": Text,
}
