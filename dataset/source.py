"""Where the rows come from, and whether they are what the entry says: checked before anything else is loaded."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, Value

from dataset.spec import DatasetSpec
from heterolora.errors import UserError, nearest

HELD_OUT = 0.05
# Data do not depend on `--seed`: a `test` with another seed must not score rows that were trained on.
DATA_SEED = 0

WHOLE = ""  # the name of a saved split that has none

_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")
_LAYOUT = "give a folder made by save_to_disk, or one of train, validation and test files (jsonl, json, csv, parquet)"
_A_ROW = "give it at least one row"

Readers = Mapping[str, Callable[[], Dataset]]


@dataclass(frozen=True)
class Splits:
    """The rows of a data set, before tokenising, with the entry's columns only; labels are ids, or floats.

    Attributes:
        train: in file order.
        validation: by split name, in the entry's order.
        test: by split name; the validation splits where there is no test split with labels.
        notes: what was decided that a user should know, one sentence each.
    """

    train: Dataset
    validation: Mapping[str, Dataset]
    test: Mapping[str, Dataset]
    notes: tuple[str, ...]


def read_splits(spec: DatasetSpec, saved_path: str | Path | None = None, cache: bool = True) -> Splits:
    """Reads the splits of `spec` from `saved_path` if given, else from its generator or the hub, and checks them.

    Args:
        spec: the entry.
        saved_path: a `save_to_disk` folder, or a folder of `train`, `validation` and `test` files.
        cache: keep what was converted for the next run.

    Raises:
        UserError: a folder, split or column that is not there, an empty split, labels that are not the entry's, or a
            hub that cannot be reached.
    """
    notes: list[str] = []
    available = _available(spec, saved_path, cache)
    if saved_path is None:
        validation_names = spec.validation
    elif tuple(available) == (WHOLE,):  # `save_to_disk` of one Dataset: all there is
        available = {spec.train: available[WHOLE]}
        validation_names = ()
    else:
        validation_names = spec.validation or tuple({"validation"} & set(available))

    def read(split: str) -> Dataset:
        if split not in available:
            raise UserError(f"data set '{spec.name}' has no split '{split}'", nearest(split, available))
        rows, said = _checked(spec, split, available[split]())
        notes.extend(said)
        return rows

    train = read(spec.train)
    if validation_names:
        validation = {split: read(split) for split in validation_names}
    else:
        train, held_out = _hold_out(train)
        validation = {"validation": held_out}
        notes.append(
            f"no validation split: {len(held_out)} of {len(train) + len(held_out)} training rows ({HELD_OUT:.0%}, the "
            f"same for every seed) are held out"
        )
    if spec.test is not None and spec.test in available:
        test = {spec.test: read(spec.test)}
    elif spec.test is not None and saved_path is None:
        raise UserError(f"data set '{spec.name}' has no split '{spec.test}'", nearest(spec.test, available))
    else:
        test = validation
        why = "there is no test split"
        if spec.test is None and spec.validation:
            why = f"the test labels of {spec.name} are hidden"
            if saved_path is not None and "test" in available:
                why += ", and the folder's test split is not read"
        notes.append(f"{why}: test uses {' and '.join(validation)}")
    return Splits(train, validation, test, tuple(notes))


def _available(spec: DatasetSpec, saved_path: str | Path | None, cache: bool) -> Readers:
    if saved_path is not None:
        return _saved(Path(saved_path).expanduser(), cache)
    if spec.generate is not None:
        splits = (spec.train, *spec.validation, *((spec.test,) if spec.test else ()))
        return {split: partial(_generated, spec, split) for split in splits}
    if spec.path is None:
        raise UserError(f"data set '{spec.name}' has no hub repository", "give --dataset-saved-path")
    return {split: partial(_same, rows) for split, rows in _from_hub(spec).items()}


def _same(rows: Dataset) -> Dataset:
    return rows


def _generated(spec: DatasetSpec, split: str) -> Dataset:
    return Dataset.from_list(spec.generate(split, DATA_SEED))


def _from_hub(spec: DatasetSpec) -> datasets.DatasetDict:
    try:
        return datasets.load_dataset(spec.path, spec.config)
    except Exception as error:  # whatever HTTP library the hub's client uses has errors of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"data set '{spec.name}' could not be fetched from the hub ({reason})",
            f"connect to it, or give --dataset-saved-path a folder that holds '{spec.path}'",
        ) from error


def _saved(folder: Path, cache: bool) -> Readers:
    """What a folder holds, by split; nothing is read yet."""
    if not folder.is_dir():
        raise UserError(f"--dataset-saved-path {folder} is {'a file' if folder.exists() else 'not there'}", _LAYOUT)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        return {split: partial(_from_disk, folder / split) for split in splits}
    if (folder / "state.json").is_file():
        return {WHOLE: partial(_from_disk, folder)}
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _READERS and path.is_file():
            files.setdefault(_SHARD.sub("", path.stem), []).append(path)
    if not files:
        raise UserError(f"--dataset-saved-path {folder} holds no data", _LAYOUT)
    for split, paths in files.items():
        if len({path.suffix for path in paths}) > 1:
            found = ", ".join(path.name for path in paths)
            raise UserError(f"{folder} has split '{split}' more than once ({found})", "keep one of them")
    return {split: partial(_from_files, paths, cache) for split, paths in files.items()}


def _from_disk(folder: Path) -> Dataset:
    try:
        return datasets.load_from_disk(str(folder))
    except IndexError as error:  # what the library makes of a split with no rows
        raise UserError(f"{folder} is empty", _A_ROW) from error
    except (OSError, ValueError, KeyError) as error:  # Arrow's errors are among them
        raise UserError(f"{folder} cannot be read ({error})", "write it again with save_to_disk") from error


def _from_files(paths: list[Path], cache: bool) -> Dataset:
    if all(path.stat().st_size == 0 for path in paths):
        raise UserError(f"{paths[0]} is empty", _A_ROW)
    reader = _READERS[paths[0].suffix]
    # Empty cells and words such as "NA" or "null" are texts like any other.
    options = {"keep_default_na": False} if reader == "csv" else {}
    with tempfile.TemporaryDirectory() if not cache else nullcontext() as scratch:
        try:
            builder = datasets.load_dataset_builder(
                reader, data_files=[str(path) for path in paths], cache_dir=scratch, **options
            )
            builder.download_and_prepare()
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UserError(f"{paths[0]} cannot be read as {paths[0].suffix[1:]} ({reason})", _LAYOUT) from error
        if builder.info.splits["train"].num_examples == 0:
            raise UserError(f"{paths[0]} is empty", _A_ROW)
        return builder.as_dataset("train", in_memory=not cache)


def _hold_out(rows: Dataset) -> tuple[Dataset, Dataset]:
    """(the rest, 5% drawn by a fixed seed), both in file order."""
    if len(rows) < 2:
        raise UserError(f"split 'train' has {len(rows)} row, and part of it is to be held out", "at least 2 are needed")
    order = np.random.default_rng(DATA_SEED).permutation(len(rows))
    count = max(1, round(HELD_OUT * len(rows)))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))


def _checked(spec: DatasetSpec, split: str, rows: Dataset) -> tuple[Dataset, list[str]]:
    """The entry's columns of a split, and what there is to say about them."""
    where = f"split '{split}' of data set '{spec.name}'"
    if len(rows) == 0:
        raise UserError(f"{where} is empty", _A_ROW)
    wanted = (*spec.columns, spec.label) if spec.task == "classification" else spec.columns
    for column in wanted:
        if column not in rows.column_names:
            raise UserError(f"{where} has no column '{column}'", nearest(column, rows.column_names))
    rows = rows.select_columns(list(wanted))
    notes = []
    for column in spec.columns:
        feature = rows.features[column]
        if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
            raise UserError(f"column '{column}' of {where} holds {_kind(feature)}", "it must hold text")
        missing = rows.with_format("arrow")[:][column].null_count
        if missing:
            notes.append(f"{missing} rows of {where} have nothing in column '{column}': taken as empty text")
            rows = rows.map(partial(_fill, column), keep_in_memory=True, load_from_cache_file=False)
    if spec.task == "classification":
        rows = _with_label_ids(spec, where, rows)
    return rows, notes


def _fill(column: str, row: dict[str, Any]) -> dict[str, Any]:
    return {column: row[column] or ""}


def _kind(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__


def _with_label_ids(spec: DatasetSpec, where: str, rows: Dataset) -> Dataset:
    """`rows` with labels that are ids within the range, or finite numbers for regression."""
    feature = rows.features[spec.label]
    column = rows.with_format("arrow")[:][spec.label]
    right = "labels are real numbers"
    if spec.labels:
        listing = ", ".join(f"{index} {name}" for index, name in enumerate(spec.labels))
        right = f"labels are 0 to {len(spec.labels) - 1}: {listing}"
    if column.null_count:
        raise UserError(f"{where} has {column.null_count} rows without a label", right)
    values = column.to_pylist()

    if isinstance(feature, ClassLabel) and spec.labels and feature.num_classes != len(spec.labels):
        raise UserError(f"{where} has the labels {', '.join(feature.names)}", right)
    if isinstance(feature, ClassLabel) and set(feature.names) == set(spec.labels):
        ids = [spec.labels.index(name) for name in feature.names]
        values = [ids[value] if value >= 0 else value for value in values]
    elif spec.labels and isinstance(values[0], str):
        by_name = {name: index for index, name in enumerate(spec.labels)}
        values = [by_name.get(value, value) for value in values]

    for index, value in enumerate(values):
        if not isinstance(value, int | float):
            raise UserError(f"row {index} of {where} has label '{value}'", right)
        if spec.labels and value == -1:
            raise UserError(f"the labels of {where} are hidden (-1 in row {index})", right)
        if spec.labels and not (0 <= value < len(spec.labels) and value == int(value)):
            raise UserError(f"row {index} of {where} has label {value}", right)
        if not math.isfinite(value):
            raise UserError(f"row {index} of {where} has label {value}", right)
    values = [float(value) if spec.regression else int(value) for value in values]
    return rows.remove_columns(spec.label).add_column(spec.label, np.asarray(values))
