"""The splits of a folder from outside: what `save_to_disk` wrote, or one file or several for each split.

No code of the folder runs: its data files are read by their suffix, and a Python file in it is ignored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset

from dataset.cache import cached, file_digest
from dataset.files import READERS, VERSION, joined, read_table, reading_file
from dataset.identity import digest
from dataset.spec import DatasetSpec
from heterolora.errors import UserError
from heterolora.outside import read_json, reading

WHOLE = ""  # the split name of a saved Dataset without splits

Readers = Mapping[str, Callable[[], Dataset]]

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_LAYOUT = "give a folder made by save_to_disk, or one of train, validation and test files (jsonl, json, csv, parquet)"
_SAVE_AGAIN = "write the folder again with save_to_disk"
_WRITTEN_ROWS = 1000  # rows of a batch in a cache file, as `datasets` writes them


def saved_splits(place: str | Path, spec: DatasetSpec, cache: bool) -> Readers:
    """Returns a function for each split of a folder that reads it. With `cache`, rows from files are kept for later.

    Raises UserError if the folder is not there or has another layout. The functions raise UserError if a file is
    damaged or lacks a column.
    """
    with reading("--dataset-saved-path", place, _LAYOUT):
        folder = Path(place).expanduser()
        if not os.path.isdir(folder):
            found = "a file" if os.path.exists(folder) else "not there"
            raise UserError(f"--dataset-saved-path {folder} is {found}", _LAYOUT)
        names = sorted(path.name for path in folder.iterdir())
    if "dataset_dict.json" in names:
        splits = read_json(folder / "dataset_dict.json", "the list of splits", _SAVE_AGAIN).get("splits")
        if not splits or not _is_names(splits):
            raise UserError(f"'{folder / 'dataset_dict.json'}' lists no splits", _SAVE_AGAIN)
        return {split: partial(_from_disk, folder / split) for split in splits}
    if "state.json" in names:
        return {WHOLE: partial(_from_disk, folder)}
    files: dict[str, list[Path]] = {}
    for path in (folder / name for name in names if Path(name).suffix in READERS):
        files.setdefault(_SHARD.sub("", path.stem), []).append(path)
    if not files:
        raise UserError(f"--dataset-saved-path {folder} holds no data", _LAYOUT)
    for split, paths in files.items():
        if len({path.suffix for path in paths}) > 1:
            found = ", ".join(path.name for path in paths)
            raise UserError(f"{folder} has split '{split}' more than once ({found})", "keep one of them")
    return {split: partial(_from_files, paths, spec, cache) for split, paths in files.items()}


def empty(found: object) -> UserError:
    return UserError(f"{found} is empty", "give it at least one row")


def _is_names(value: object) -> bool:
    """Whether a value is a list of names in a folder. A path to another folder is not a name."""
    return isinstance(value, list) and all(isinstance(name, str) and Path(name).name == name for name in value)


def _from_disk(folder: Path) -> Dataset:
    state = read_json(folder / "state.json", "the state of the rows", _SAVE_AGAIN)
    read_json(folder / "dataset_info.json", "the description of the rows", _SAVE_AGAIN)
    files = state.get("_data_files")
    listed = isinstance(files, list) and all(isinstance(file, dict) for file in files)
    if not listed or not _is_names([file.get("filename") for file in files]):
        raise UserError(f"'{folder / 'state.json'}' lists no data files", _SAVE_AGAIN)
    if not files:  # `datasets` writes a split without rows this way, and cannot load it
        raise empty(folder)
    with reading("the folder", folder, _SAVE_AGAIN):
        rows = datasets.load_from_disk(str(folder))
        rows.data.validate(full=True)  # damaged offsets would end the whole process when a text is read
        return rows


def _from_files(paths: list[Path], spec: DatasetSpec, cache: bool) -> Dataset:
    """Reads the files of a split. The rows are kept under a digest of the files' bytes."""
    if not cache:
        return _rows(paths, spec)
    contents = []
    for path in paths:
        with reading_file(path):
            contents.append([path.suffix, file_digest(path)])
    key = digest([VERSION, contents, spec.columns, spec.label_column])
    return cached(key, lambda place: _write(_rows(paths, spec), place))


def _rows(paths: list[Path], spec: DatasetSpec) -> Dataset:
    tables = [read_table(path, spec.columns, spec.label_column) for path in paths]
    filled = [table for table in tables if table.num_rows]
    if not filled:
        raise empty(paths[0])
    with reading("the file", paths[0], "give all files of a split the same types"):
        return Dataset(joined(filled))  # it reads the description of the columns, which can be damaged too


def _write(rows: Dataset, place: Path) -> None:
    table = rows.data.table
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=_WRITTEN_ROWS)
