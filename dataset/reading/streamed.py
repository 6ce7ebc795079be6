"""Splits whose training rows are read while a run trains on them, by `datasets`: from many files, or from the hub."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset

from dataset.reading.row_file import BATCH, empty
from dataset.reading.splits import VALIDATION, split_of
from dataset.reading.stored import Stored, StoredSplits, of_hub, stored_splits
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from heterolora.common.outside import reading

_READERS = {".parquet": "parquet", ".jsonl": "json"}  # suffix -> the reader of `datasets`
_TRAIN, _MEASURED = "train", (*VALIDATION, "test")
_FILES = "give a folder of parquet or jsonl files, with a file or a folder named validation"


def opened_splits(spec: DatasetSpec, saved_path: str | Path | None = None, buffer: int | None = None) -> StoredSplits:
    """Return `stored_splits`. With `buffer`, so many rows of the training split are read, and the others are streamed.

    Measured splits are read completely.
    """
    if buffer is None or spec.opened is not None:
        return stored_splits(spec, saved_path)
    place = spec.place if saved_path is None else Path(saved_path)
    if place is None and spec.path is None:
        raise UserError(f"--streaming cannot read data set '{spec.name}', which this program makes", "leave it out")
    streams = of_hub(spec, streaming=True) if place is None else _of_files(place.expanduser())
    measured = {*_MEASURED, *spec.validation, spec.test}
    return {split: _stored(spec, rows, None if split in measured else buffer) for split, rows in streams.items()}


def _of_files(place: Path) -> Mapping[str, IterableDataset]:
    with reading("--dataset", place, _FILES):
        paths = sorted(place.rglob("*")) if place.is_dir() else [place]
        files = [path for path in paths if path.suffix in _READERS]
        if not files:
            raise UserError(f"--streaming finds no rows in {place}", _FILES)
        if len({path.suffix for path in files}) > 1:
            raise UserError(f"--streaming finds both parquet and jsonl files in {place}", "keep those of one kind")
        named = {split: [glob.escape(str(path)) for path in paths] for split, paths in _by_split(files).items()}
        return datasets.load_dataset(_READERS[files[0].suffix], data_files=named, streaming=True)


def _by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Return the files of each split. Those that are not named after one, nor are in its folder, are for training."""
    found: dict[str, list[Path]] = {}
    for path in files:
        names = (split_of(path), path.parent.name.lower())
        split = next((name for name in names if name in (_TRAIN, *_MEASURED)), _TRAIN)
        found.setdefault(split, []).append(path)
    return found


def _stored(spec: DatasetSpec, rows: IterableDataset, most: int | None) -> Stored:
    return Stored.made_by(partial(_first, spec, rows, most), None if most is None else rows)


def _first(spec: DatasetSpec, rows: IterableDataset, most: int | None) -> Dataset:
    """Return the first `most` rows. None: all."""
    with reading("the data set", spec.name, "write its files again"):
        parts = rows.with_format("arrow").iter(most or BATCH)
        if not (tables := [*islice(parts, None if most is None else 1)]):
            raise empty(f"a split of data set '{spec.name}'")
        return Dataset(pa.concat_tables(tables))
