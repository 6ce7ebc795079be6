"""The splits of a file or folder from outside: what `save_to_disk` wrote, or one file or several for each split.

No code of the folder runs: its data files are read by their suffix, and a Python file in it is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset

from dataset.reading.cache import cached, digest, file_digest
from dataset.reading.content import empty
from dataset.reading.files import READERS, VERSION, columns_of, joined, read_table, reading_file
from dataset.reading.kinds import ColumnKind, kinds
from dataset.reading.splits import are_shards, holds_rows, is_packed, missing_shards, split_of
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from heterolora.common.outside import read_json, reading

WHOLE = ""  # the split name of a file, or of a saved Dataset without splits


@dataclass(frozen=True)
class Stored:
    """A split that is stored somewhere.

    Attributes:
        read: returns at least the entry's columns. If its second argument is true, rows from files are kept for later.
        columns: returns what each column holds.
    """

    read: Callable[[DatasetSpec, bool], Dataset]
    columns: Callable[[], Mapping[str, ColumnKind]]

    @classmethod
    def made_by(cls, make: Callable[[], Dataset]) -> Stored:
        """The split that `make` returns, with all its columns."""
        return cls(lambda spec, cache: make(), lambda: kinds(make().data.schema))


Splits = Mapping[str, Stored]

_SUFFIXES = ", ".join(suffix[1:] for suffix in READERS)
_LAYOUT = f"give a folder made by save_to_disk, or one of train, validation and test files ({_SUFFIXES})"
_FILE = f"give a file of one of the kinds {_SUFFIXES}, or a folder"
_SAVE_AGAIN = "write the folder again with save_to_disk"
_WRITTEN_ROWS = 1000  # rows of a batch in a cache file, as `datasets` writes them


def file_or_folder(place: Path) -> Splits:
    """Returns the splits of own data. A file is one split without a name. Raises UserError as `saved_splits` does."""
    with reading("--dataset", place, _FILE):
        path = place.expanduser()
        if os.path.isdir(path):
            return saved_splits(path, "--dataset", inside="data")
        if not os.path.exists(path):
            beside = os.listdir(path.parent) if os.path.isdir(path.parent) else ()
            near = get_close_matches(path.name, [name for name in beside if Path(name).suffix in READERS], n=1)
            raise UserError(f"--dataset {place} is not there", f"did you mean '{near[0]}'?" if near else _FILE)
        if path.suffix not in READERS:
            raise UserError(f"--dataset {place} is a file of another kind", _FILE)
        return {WHOLE: _of_files([path])}


def saved_splits(place: str | Path, flag: str = "--dataset-saved-path", inside: str | None = None) -> Splits:
    """Returns the splits of a folder, which the option `flag` names.

    In a copy of a repository of the hub, the data files are in the folder `inside`, which has the name of a
    configuration, or is called `data`.

    Raises UserError if the folder is not there or has another layout. The functions of a split raise UserError if a
    file is damaged or lacks a column.
    """
    with reading(flag, place, _LAYOUT):
        folder = Path(place).expanduser()
        if not os.path.isdir(folder):
            found = "a file" if os.path.exists(folder) else "not there"
            raise UserError(f"{flag} {folder} is {found}", _LAYOUT)
        names = sorted(path.name for path in folder.iterdir())
    if "dataset_dict.json" in names:
        splits = read_json(folder / "dataset_dict.json", "the list of splits", _SAVE_AGAIN).get("splits")
        if not splits or not _is_names(splits):
            raise UserError(f"'{folder / 'dataset_dict.json'}' lists no splits", _SAVE_AGAIN)
        return {split: Stored.made_by(partial(_from_disk, folder / split)) for split in splits}
    if "state.json" in names:
        return {WHOLE: Stored.made_by(partial(_from_disk, folder))}
    if packed := next((name for name in names if is_packed(Path(name))), None):
        raise UserError(f"{folder / packed} is compressed", "unpack it")
    files: dict[str, list[Path]] = {}
    for path in (folder / name for name in names if holds_rows(Path(name))):
        files.setdefault(split_of(path), []).append(path)
    if not files and inside in names:
        return saved_splits(folder / inside, flag)
    if not files:
        raise UserError(f"{flag} {folder} holds no data", _LAYOUT)
    for split, paths in files.items():
        if len({path.suffix for path in paths}) > 1 or (len(paths) > 1 and not are_shards(paths)):
            found = ", ".join(path.name for path in paths)
            raise UserError(f"{folder} has split '{split}' more than once ({found})", "keep one of them")
        if missing := missing_shards(paths):
            found = f"{folder} lacks {len(missing)} files of split '{split}', such as {split}{missing[0]}"
            raise UserError(found, "complete the download, or rename the files")
    return {split: _of_files(paths) for split, paths in files.items()}


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


def _of_files(paths: list[Path]) -> Stored:
    return Stored(partial(_from_files, paths), partial(_columns, paths))


def _columns(paths: list[Path]) -> Mapping[str, ColumnKind]:
    """The columns of the first file that is not empty."""
    return columns_of(next((path for path in paths if path.is_file() and path.stat().st_size), paths[0]))


def _from_files(paths: list[Path], spec: DatasetSpec, cache: bool) -> Dataset:
    """Reads the files of a split. The rows are kept under a digest of the files' bytes."""
    if not cache:
        return _rows(paths, spec)
    contents = []
    for path in paths:
        with reading_file(path):
            contents.append([path.suffix, file_digest(path)])
    key = digest([VERSION, contents, spec.columns, spec.label_column, *spec.nested])
    return cached(key, lambda place: _write(_rows(paths, spec), place))


def _rows(paths: list[Path], spec: DatasetSpec) -> Dataset:
    tables = [read_table(path, spec) for path in paths]
    filled = [table for table in tables if table.num_rows]
    if not filled:
        raise empty(paths[0])
    with reading("the file", paths[0], "give all files of a split the same types"):
        return Dataset(joined(filled))  # it reads the description of the columns, which can be damaged too


def _write(rows: Dataset, place: Path) -> None:
    table = rows.data.table
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=_WRITTEN_ROWS)
