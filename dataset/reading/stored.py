"""The splits of a data set where they are stored: in files, in a folder that `save_to_disk` wrote, or on the hub.

No code of a folder runs: its data files are read by their suffix, and a Python file in it is ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset

from dataset.reading.cache import cached, digest, file_digest
from dataset.reading.columns import ColumnKind, kinds_of
from dataset.reading.files import FORMATS, VERSION
from dataset.reading.row_file import Gather, RowFile, empty, joined, spooled
from dataset.reading.splits import SUFFIXES, are_shards, files_by_split, is_packed, missing_shards
from dataset.spec import DatasetSpec, Wanted
from heterolora.common.errors import UserError
from heterolora.common.outside import read_json, reading

# The rows of an entry do not depend on `--seed`: a `test` with another seed would score rows of the training split.
DATA_SEED = 0
UNNAMED = ""  # the split of a file, or of a saved Dataset without splits


@dataclass(frozen=True)
class Stored:
    """A split that is stored somewhere. What was read is kept, so that nothing is read twice.

    Attributes:
        read: returns at least the wanted columns. If its second argument is true, rows from files are kept on disk.
        columns: returns what each column holds.
        rows: returns all columns of all rows, with the values as they are stored.
        stream: the rows, if they are read while a run trains on them. Then `read` returns the first ones.
    """

    read: Callable[[Wanted, bool], Dataset]
    columns: Callable[[], Mapping[str, ColumnKind]]
    rows: Callable[[], list[dict[str, Any]]]
    stream: IterableDataset | None = None

    @classmethod
    def made_by(cls, make: Callable[[], Dataset], stream: IterableDataset | None = None) -> Stored:
        """Return the split that `make` returns, with all its columns."""
        made = cache(make)
        return cls(
            lambda wanted, on_disk: made(), lambda: kinds_of(made().data.schema), lambda: made().to_list(), stream
        )

    @classmethod
    def in_files(cls, paths: Sequence[Path]) -> Stored:
        """Return the split whose rows are those of all files."""
        files = [FORMATS[path.suffix](path) for path in paths]
        return cls(
            cache(partial(_rows_of, files)),
            cache(partial(_columns_of, files)),
            lambda: [row for file in files for row in file.rows()],
        )


StoredSplits = Mapping[str, Stored]

_NAMES = ", ".join(suffix[1:] for suffix in SUFFIXES)
_LAYOUT = f"give a folder made by save_to_disk, or one of train, validation and test files ({_NAMES})"
_FILE = f"give a file of one of the kinds {_NAMES}, or a folder"
_SAVE_AGAIN = "write the folder again with save_to_disk"
_WRITTEN_ROWS = 1000  # rows of a batch in a cache file, as `datasets` writes them


def stored_splits(spec: DatasetSpec, saved_path: str | Path | None = None) -> StoredSplits:
    """Return the splits of `spec` by name, before they are read. Raises UserError if there are none."""
    if saved_path is not None:
        return saved_splits(saved_path, inside=spec.config or "data")
    if spec.opened is not None:
        return spec.opened
    if spec.place is not None:
        return file_or_folder(spec.place)
    if spec.generate is not None:
        splits = (spec.train, *spec.validation, *((spec.test,) if spec.test else ()))
        return {split: Stored.made_by(partial(_generated, spec.generate, split)) for split in splits}
    if spec.path is None:
        raise UserError(f"data set '{spec.name}' has no hub repository", "give --dataset-saved-path")
    on_hub = of_hub(spec)
    about = "the copy in the cache of data set", spec.name, "delete it from the cache of `datasets`"
    return {split: Stored.made_by(partial(_intact, about, partial(on_hub.get, split))) for split in on_hub}


def of_hub(spec: DatasetSpec, **options: Any) -> Any:
    """Return the data set of the hub. `options` are those of `load_dataset`. Raises UserError if it cannot be read."""
    try:
        return datasets.load_dataset(spec.path, spec.config, **options)
    except Exception as error:  # the HTTP library of the hub's client raises its own errors
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        expected = "give --dataset a file, a folder, or a hub name such as owner/name or owner/name:configuration"
        if not spec.own:
            expected = (
                "connect to it, correct path and config of the entry, or give --dataset-saved-path a folder that holds "
                f"'{spec.path}'"
            )
        name = spec.path if spec.own else spec.name
        raise UserError(f"data set '{name}' could not be fetched from the hub ({reason})", expected) from error


def _generated(generate: Callable[[str, int], list[dict[str, object]]], split: str) -> Dataset:
    return Dataset.from_list(generate(split, DATA_SEED))


def _intact(about: tuple[str, str | Path, str], load: Callable[[], Dataset]) -> Dataset:
    """Return the rows that `load` returns. `about` are the arguments of `reading`."""
    with reading(*about):
        rows = load()
        rows.data.validate(full=True)  # damaged offsets would end the whole process when a text is read
        return rows


def file_or_folder(place: Path) -> StoredSplits:
    """Return the splits of own data. A file is one split without a name. Raises UserError as `saved_splits` does."""
    with reading("--dataset", place, _FILE):
        path = place.expanduser()
        if os.path.isdir(path):
            return saved_splits(path, "--dataset", inside="data")
        if not os.path.exists(path):
            beside = os.listdir(path.parent) if os.path.isdir(path.parent) else ()
            near = get_close_matches(path.name, [name for name in beside if Path(name).suffix in SUFFIXES], n=1)
            raise UserError(f"--dataset {place} is not there", f"did you mean '{near[0]}'?" if near else _FILE)
        if path.suffix not in SUFFIXES:
            raise UserError(f"--dataset {place} is a file of another kind", _FILE)
        return {UNNAMED: Stored.in_files([path])}


def saved_splits(place: str | Path, flag: str = "--dataset-saved-path", inside: str | None = None) -> StoredSplits:
    """Return the splits of a folder, which the option `flag` names.

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
        return {UNNAMED: Stored.made_by(partial(_from_disk, folder))}
    if packed := next((name for name in names if is_packed(Path(name))), None):
        raise UserError(f"{folder / packed} is compressed", "unpack it")
    files = files_by_split(folder)
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
    return {split: Stored.in_files(paths) for split, paths in files.items()}


def _is_names(value: object) -> bool:
    """Whether a value is a list of names in a folder. A path to another folder is not a name."""
    return isinstance(value, list) and all(isinstance(name, str) and Path(name).name == name for name in value)


def _from_disk(folder: Path) -> Dataset:
    state = read_json(folder / "state.json", "the state of the rows", _SAVE_AGAIN)
    read_json(folder / "dataset_info.json", "the description of the rows", _SAVE_AGAIN)
    files = state.get("_data_files")
    listed = files if isinstance(files, list) and all(isinstance(file, dict) for file in files) else None
    if listed is None or not _is_names([file.get("filename") for file in listed]):
        raise UserError(f"'{folder / 'state.json'}' lists no data files", _SAVE_AGAIN)
    if not files:  # `datasets` writes a split without rows this way, and cannot load it
        raise empty(folder)
    return _intact(("the folder", folder, _SAVE_AGAIN), partial(datasets.load_from_disk, str(folder)))


def _columns_of(files: list[RowFile]) -> Mapping[str, ColumnKind]:
    """Return the columns of the first file that is not empty."""
    return next((file for file in files if file.path.is_file() and file.path.stat().st_size), files[0]).columns()


def _rows_of(files: list[RowFile], wanted: Wanted, on_disk: bool) -> Dataset:
    """Return the rows of all files. `on_disk`: they are kept there, under a digest of the files' bytes."""
    if not on_disk:
        return Dataset(_read(files, wanted))
    contents = []
    for file in files:
        with file.opened():
            contents.append([file.path.suffix, file_digest(file.path)])
    key = digest([VERSION, contents, wanted.texts, wanted.label, *wanted.nested])
    return cached(key, partial(_convert, files, wanted))


def _convert(files: list[RowFile], wanted: Wanted, place: Path) -> None:
    """Write the rows of all files to `place`, without ever holding all of them in memory."""
    pieces = [place.with_name(f"{number}.pieces") for number, _ in enumerate(files)]
    _write(_read(files, wanted, [partial(spooled, piece) for piece in pieces]), place)
    for piece in place.parent.glob("*.pieces.*"):
        piece.unlink()


def _read(files: list[RowFile], wanted: Wanted, gathers: Sequence[Gather | None] | None = None) -> pa.Table:
    """Return the rows of all files. `gathers` has the `gather` of `RowFile.table` for each file."""
    pairs = zip(files, gathers or [None] * len(files), strict=True)
    filled = [table for file, gather in pairs if (table := file.table(wanted, gather)).num_rows]
    first = files[0].path
    if not filled:
        raise empty(first)
    with reading("the file", first, "give all files of a split the same types"):
        table = joined(filled)
        # `datasets` reads the description of the columns, which can be damaged too. It would copy all rows.
        schema = Dataset(table.slice(0, 0)).data.schema
        return table.replace_schema_metadata(schema.metadata) if table.schema.equals(schema) else table.cast(schema)


def _write(table: pa.Table, place: Path) -> None:
    with pa.OSFile(str(place), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=_WRITTEN_ROWS)
