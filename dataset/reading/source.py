"""Reads the splits of a data set and checks them against its entry, before anything else is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, Value

from dataset.reading.content import empty
from dataset.reading.conversations import conversations
from dataset.reading.folder import WHOLE, Stored, file_or_folder, saved_splits
from dataset.reading.folder import Splits as StoredSplits
from dataset.reading.labels import are_hidden, label_ids
from dataset.reading.splits import VALIDATION
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest
from heterolora.common.outside import reading
from options.data import HELD_OUT

# The data of an entry do not depend on `--seed`: a `test` with another seed would score rows of the training split.
DATA_SEED = 0
_TEST = "test"  # the usual name of this split
_BESIDE = ("tools", "functions", "system", "system_prompt", "history")


@dataclass(frozen=True)
class Splits:
    """The rows of a data set before tokenisation, with the entry's columns only. Labels are ids, or floats."""

    train: Dataset  # in file order
    validation: Mapping[str, Dataset]  # by name, in the entry's order
    test: Mapping[str, Dataset]  # by name; the validation splits if there is no test split with labels
    notes: tuple[str, ...]  # decisions that the user should know, one sentence each
    validated: bool = True  # False if no rows were held out, and `validation` is what `test` measures
    held_out: bool = False  # whether `validation` are rows of the training split that were held out


def read_splits(
    spec: DatasetSpec,
    saved_path: str | Path | None = None,
    cache: bool = True,
    share: float = HELD_OUT,
    seed: int | None = None,
) -> Splits:
    """Reads and checks the splits of `spec`, from `saved_path` if given, else from its place, generator or the hub.

    Raises UserError if a folder, split or column is missing, if a split is empty, if labels do not match the entry, or
    if the hub cannot be reached.

    Args:
        spec: the data set.
        saved_path: a `save_to_disk` folder, or a folder of `train`, `validation` and `test` files.
        cache: keep converted files for the next run.
        share: of the training rows, to hold out where there is no validation split. 0: nothing is held out, and the
            test split, or all rows if there is one split only, is the only measured one.
        seed: of the rows to hold out. None: the same rows in every run.
    """
    notes: list[str] = []
    available = stored_splits(spec, saved_path)
    if whole := _is_whole(spec, available):
        (name,) = available
        if share > 0 and name in (*VALIDATION, _TEST):  # `test` gives 0, and measures all rows
            raise UserError(f"data set '{spec.name}' has only the split '{name}'", "give it a split 'train'")
        available = {spec.train: next(iter(available.values()))}
    if spec.own and spec.label_column and _TEST in available:
        available = _labelled(spec, available, cache, notes)
    validation_names, test = _evaluated(spec, available, whole, from_folder=saved_path is not None)
    unread = available.keys() - {spec.train, *validation_names, _TEST} if spec.own else ()
    if unread:
        notes.append(f"not read: {', '.join(sorted(unread))}; splits are train, {', '.join(VALIDATION)} and test")

    def read(split: str) -> Dataset:
        return _read(spec, available, split, saved_path, cache, notes)

    train = read(spec.train)
    if spec.own and (spec.chat or spec.response is not None):
        notes += _unused(spec, available[spec.train].columns())
    validation = {split: read(split) for split in validation_names}
    tested = {} if test is None else {test: read(test)}
    if not validation and share == 0:
        tested = tested or {"test": train}
        return Splits(train, tested, tested, tuple(notes), validated=False)
    if from_train := not validation:
        train, held_out = _hold_out(train, share, seed, spec.running_text)
        validation = {"validation": held_out}
        how = "the same for every seed" if seed is None else f"drawn by seed {seed}"
        found = f"{len(held_out)} of {len(train) + len(held_out)} training rows ({100 * share:.3g}%, {how})"
        notes.append(f"no validation split: {found} are held out; --validation-share sets the share")
    elif share not in (0, HELD_OUT):
        notes.append(f"--validation-share has no effect: there is a split '{validation_names[0]}'")
    if tested:
        return Splits(train, validation, tested, tuple(notes), held_out=from_train)
    if spec.hidden_test:
        left = ", and the folder's test split is not read" if saved_path is not None and _TEST in available else ""
        notes.append(f"the test labels of {spec.name} are hidden{left}: test uses {' and '.join(validation)}")
    else:
        notes.append(f"there is no test split: test uses {' and '.join(validation)}")
    return Splits(train, validation, validation, tuple(notes), held_out=from_train)


def read_split(spec: DatasetSpec, split: str, saved_path: str | Path | None = None, cache: bool = True) -> Dataset:
    """Reads and checks another split of `spec` than those of `read_splits`. Raises UserError as it does."""
    return _read(spec, stored_splits(spec, saved_path), split, saved_path, cache, [])


def _read(
    spec: DatasetSpec,
    available: StoredSplits,
    split: str,
    saved_path: str | Path | None,
    cache: bool,
    notes: list[str],
) -> Dataset:
    if split not in available:
        raise UserError(f"data set '{spec.name}' has no split '{split}'", nearest(split, available))
    where = f"split '{split}' of data set '{spec.name}'" + (f" in '{saved_path}'" if saved_path else "")
    return _checked(spec, where, available[split].read(spec, cache), notes)


def _is_whole(spec: DatasetSpec, available: StoredSplits) -> bool:
    """Whether there is one split, and it holds all rows.

    For an entry without a validation split, it may have any name that is not one of another split.
    """
    if len(available) != 1:
        return False
    (name,) = available
    return spec.own or name == WHOLE or not (spec.validation or name in (*VALIDATION, _TEST))


def _unused(spec: DatasetSpec, columns: Iterable[str]) -> list[str]:
    """A note for each column beside prompts or conversations that other programs would put before them."""
    return [
        f"column '{name}' of {spec.name} is not read: it is no part of what the model sees"
        for name in columns
        if name in _BESIDE and name not in spec.columns
    ]


def _labelled(spec: DatasetSpec, available: StoredSplits, cache: bool, notes: list[str]) -> StoredSplits:
    """Returns the splits of own data, without the test split if it has no labels. Appends to `notes`."""
    column, lack = spec.label_column, "no column"
    if column in available[_TEST].columns():
        rows = available[_TEST].read(spec, cache)
        if not are_hidden(spec, rows):
            return {**available, _TEST: Stored.made_by(lambda: rows)}
        lack = "no labels in column"
    notes.append(f"split '{_TEST}' has {lack} '{column}' and is not read")
    return {name: split for name, split in available.items() if name != _TEST}


def _evaluated(
    spec: DatasetSpec, available: StoredSplits, whole: bool, from_folder: bool
) -> tuple[tuple[str, ...], str | None]:
    """Returns the names of the validation splits, and that of the test split or None.

    `whole` says that there is one split, and `from_folder` that the splits are in the folder `--dataset-saved-path`.
    """
    if spec.own:
        validation = [name for name in VALIDATION if name in available]
        return tuple(validation[:1]), _TEST if _TEST in available else None
    names = () if whole else spec.validation
    if from_folder and not names and "validation" in available:
        names = ("validation",)
    return names, spec.test if spec.test in available or not from_folder else None


def stored_splits(spec: DatasetSpec, saved_path: str | Path | None = None) -> StoredSplits:
    """Returns the splits of `spec` by name, before they are read. Raises UserError if there are none."""
    if saved_path is not None:
        return saved_splits(saved_path, inside=spec.config or "data")
    if spec.place is not None:
        return file_or_folder(spec.place)
    if spec.generate is not None:
        splits = (spec.train, *spec.validation, *((spec.test,) if spec.test else ()))
        return {split: Stored.made_by(partial(_generated, spec, split)) for split in splits}
    if spec.path is None:
        raise UserError(f"data set '{spec.name}' has no hub repository", "give --dataset-saved-path")
    try:
        on_hub = datasets.load_dataset(spec.path, spec.config)
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
    return {split: Stored.made_by(partial(_intact, spec, rows)) for split, rows in on_hub.items()}


def _generated(spec: DatasetSpec, split: str) -> Dataset:
    return Dataset.from_list(spec.generate(split, DATA_SEED))


def _intact(spec: DatasetSpec, rows: Dataset) -> Dataset:
    with reading("the copy in the cache of data set", spec.name, "delete it from the cache of `datasets`"):
        rows.data.validate(full=True)  # damaged offsets would end the whole process when a text is read
    return rows


def _hold_out(rows: Dataset, share: float, seed: int | None, running_text: bool) -> tuple[Dataset, Dataset]:
    """Returns the remaining rows, and the share that `seed` draws. Both are in file order.

    The lines of one text are held out in one piece, so that both parts remain texts.
    """
    if len(rows) < 2 and running_text:
        raise UserError("the text has one line, and part of it must be held out", "break it into lines")
    if len(rows) < 2:
        raise UserError(f"split 'train' has {len(rows)} row, and part of it must be held out", "give at least 2 rows")
    draw = np.random.default_rng(DATA_SEED if seed is None else seed)
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    if running_text:
        order = np.roll(np.arange(len(rows)), -int(draw.integers(len(rows) - count + 1)))
    else:
        order = draw.permutation(len(rows))
    return rows.select(np.sort(order[count:])), rows.select(np.sort(order[:count]))


def _checked(spec: DatasetSpec, where: str, rows: Dataset, notes: list[str]) -> Dataset:
    """Returns the entry's columns of a split, with label ids and without missing texts. Appends to `notes`."""
    wanted = spec.read_columns
    if len(rows) == 0:
        raise empty(where)
    for column in wanted:
        if column not in rows.column_names:
            raise UserError(f"{where} has no column '{column}'", nearest(column, rows.column_names))
    rows = rows.with_format(None).select_columns(wanted)
    if spec.chat:
        return Dataset.from_dict({spec.columns[0]: conversations(where, rows[spec.columns[0]][:])})
    for column in spec.nested:
        rows = _as_json(rows, column)
    for column in spec.columns:
        feature = rows.features[column]
        kind = feature.dtype if isinstance(feature, Value) else type(feature).__name__
        if kind not in ("string", "large_string"):
            raise UserError(f"column '{column}' of {where} holds {kind}", "it must hold text")
        missing = rows.with_format("arrow")[:][column].null_count
        if missing:
            notes.append(f"{missing} rows of {where} have no text in column '{column}': an empty text is used")
            rows = rows.map(
                lambda row, column=column: {column: row[column] or ""}, keep_in_memory=True, load_from_cache_file=False
            )
    if spec.task != "classification":
        return rows
    labels = np.asarray(label_ids(spec, where, rows))
    return rows.remove_columns(spec.label).add_column(spec.label, labels)


def _as_json(rows: Dataset, column: str) -> Dataset:
    """Returns the rows with the lists or objects of a column as JSON text. Text is JSON already."""
    texts = [value if isinstance(value, str) else json.dumps(value, default=str) for value in rows[column][:]]
    return rows.remove_columns(column).add_column(column, texts)
