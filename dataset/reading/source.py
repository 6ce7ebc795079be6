"""Reads the splits of a data set and checks them against its entry, before anything else is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets
from numpy.typing import NDArray

from dataset.reading.checked import checked
from dataset.reading.labels import are_hidden
from dataset.reading.splits import VALIDATION
from dataset.reading.stored import DATA_SEED, UNNAMED, StoredSplits
from dataset.reading.streamed import opened_splits
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest
from options.data import HELD_OUT

_TEST = "test"  # the usual name of this split
_AT_ONCE = 1_000_000  # rows that are selected at once
#: Columns that other programs put before prompts and conversations.
_BESIDE = ("tools", "functions", "system", "system_prompt", "history")


@dataclass(frozen=True)
class Splits:
    """The rows of a data set before tokenisation, with the entry's columns only. Labels are ids, or floats."""

    train: Dataset  # in file order
    validation: Mapping[str, Dataset]  # by name, in the entry's order
    test: Mapping[str, Dataset]  # by name; the validation splits if there is no test split with labels
    examples: Dataset  # what the examples of `--few-shot` come from
    notes: tuple[str, ...]  # decisions that the user should know, one sentence each
    validated: bool = True  # False if no rows were held out, and `validation` is what `test` measures
    held_out: bool = False  # whether `validation` are rows of the training split that were held out
    stream: IterableDataset | None = None  # the training rows, if they are read during training; `train`: the first

    def replaced(self, make: Callable[[Dataset], Dataset]) -> Splits:
        """Return the splits with what `make` returns for each of them."""
        validation, test = ({name: make(rows) for name, rows in of.items()} for of in (self.validation, self.test))
        return replace(self, train=make(self.train), validation=validation, test=test)

    @property
    def each(self) -> list[Dataset]:
        """The training, validation and test splits. One split may serve as several of them, and is there once."""
        splits = (self.train, *self.validation.values(), *self.test.values())
        return [*{id(rows): rows for rows in splits}.values()]

    @property
    def sizes(self) -> dict[str, int]:
        """The number of rows of each split by name; without the training split if it is what `test` measures."""
        measured = any(self.train is rows for rows in self.test.values())
        splits = {} if measured else {"training": self.train}
        return {name: len(rows) for name, rows in (splits | {**self.validation, **self.test}).items()}


def read_splits(
    spec: DatasetSpec,
    saved_path: str | Path | None = None,
    cache: bool = True,
    share: float = HELD_OUT,
    seed: int | None = None,
    examples: bool = False,
    buffer: int | None = None,
) -> Splits:
    """Read and check the splits of `spec`, from `saved_path` if given, else from its place, generator or the hub.

    Raises UserError if a folder, split or column is missing, if a split is empty, if labels do not match the entry, or
    if the hub cannot be reached.

    Args:
        spec: the data set.
        saved_path: a `save_to_disk` folder, or a folder of `train`, `validation` and `test` files.
        cache: keep converted files for the next run.
        share: of the training rows, to hold out where there is no validation split. 0: nothing is held out, and the
            test split, or all rows if there is one split only, is the only measured one.
        seed: of the rows to hold out. None: the same rows in every run.
        examples: whether to read the split that the examples of `--few-shot` come from, if it is another one.
        buffer: read so many training rows, and the others during training. None: read all.
    """
    notes: list[str] = []
    stored = opened_splits(spec, saved_path, buffer)
    if is_only := _is_only(spec, stored):
        (name,) = stored
        if share > 0 and name in (*VALIDATION, _TEST):  # `test` gives 0, and measures all rows
            raise UserError(f"data set '{spec.name}' has only the split '{name}'", "give it a split 'train'")
        stored = {spec.train: stored[name]}
    if spec.own and spec.label_column and _TEST in stored:
        stored = _labelled(spec, stored, cache, notes)
    names, test = _evaluated(spec, stored, is_only, from_folder=saved_path is not None)
    unread = stored.keys() - {spec.train, *names, _TEST} if spec.own else ()
    if unread:
        notes.append(f"not read: {', '.join(sorted(unread))}; splits are train, {', '.join(VALIDATION)} and test")

    if buffer is not None:
        notes.append(f"--streaming: what needs all training rows is bounded to {buffer:,} of them (--shuffle-buffer)")
    read = partial(_read, spec, stored, saved_path, cache, notes)
    answers = spec.own and (spec.chat or spec.response is not None)
    columns = stored[spec.train].columns() if answers and spec.train in stored else ()
    train = read(spec.train)
    notes += _unused(spec, columns)
    validation = {split: read(split) for split in names}
    tested = {} if test is None else {test: read(test)}
    source = read(spec.choices.examples) if examples and spec.choices and spec.choices.examples else None
    if not validation and share == 0:
        tested = tested or {"test": train}
        return Splits(train, tested, tested, source or train, tuple(notes), validated=False)
    stream = stored[spec.train].stream
    if from_train := not validation:
        if stream is not None:
            found = f"--streaming needs a validation split, and data set '{spec.name}' has none to hold rows out of"
            raise UserError(found, "write some rows into a file of their own, such as validation.jsonl in the folder")
        train, held_out = _hold_out(train, share, seed, spec.running_text)
        validation = {"validation": held_out}
        how = "the same for every seed" if seed is None else f"drawn by seed {seed}"
        found = f"{len(held_out)} of {len(train) + len(held_out)} training rows ({100 * share:.3g}%, {how})"
        notes.append(f"no validation split: {found} are held out; --validation-share sets the share")
    elif share not in (0, HELD_OUT):
        notes.append(f"--validation-share has no effect: there is a split '{names[0]}'")
    if not tested:
        reason = "there is no test split"
        if spec.hidden_test:
            left = ", and the folder's test split is not read" if saved_path is not None and _TEST in stored else ""
            reason = f"the test labels of {spec.name} are hidden{left}"
        notes.append(f"{reason}: test uses {' and '.join(validation)}")
    return Splits(
        train, validation, tested or validation, source or train, tuple(notes), held_out=from_train, stream=stream
    )


def _read(
    spec: DatasetSpec, stored: StoredSplits, saved_path: str | Path | None, cache: bool, notes: list[str], split: str
) -> Dataset:
    """Read and check one of the stored splits. Appends to `notes`."""
    if split not in stored:
        raise UserError(f"data set '{spec.name}' has no split '{split}'", nearest(split, stored))
    where = f"split '{split}' of data set '{spec.name}'" + (f" in '{saved_path}'" if saved_path else "")
    return checked(spec, where, stored[split].read(spec.wanted, cache), notes)


def _is_only(spec: DatasetSpec, stored: StoredSplits) -> bool:
    """Whether there is one split, and it holds all rows.

    For an entry without a validation split, it may have any name that is not one of another split.
    """
    if len(stored) != 1:
        return False
    (name,) = stored
    return spec.own or name == UNNAMED or not (spec.validation or name in (*VALIDATION, _TEST))


def _unused(spec: DatasetSpec, columns: Iterable[str]) -> list[str]:
    """Return a note for each column beside prompts or conversations that other programs would put before them."""
    return [
        f"column '{name}' of {spec.name} is not read: it is no part of what the model sees"
        for name in columns
        if name in _BESIDE and name not in spec.columns
    ]


def _labelled(spec: DatasetSpec, stored: StoredSplits, cache: bool, notes: list[str]) -> StoredSplits:
    """Return the splits of own data, without the test split if it has no labels. Appends to `notes`."""
    column, lack = spec.label_column, "no column"
    if column in stored[_TEST].columns():
        if not are_hidden(spec, stored[_TEST].read(spec.wanted, cache)):
            return stored
        lack = "no labels in column"
    notes.append(f"split '{_TEST}' has {lack} '{column}' and is not read")
    return {name: split for name, split in stored.items() if name != _TEST}


def _evaluated(
    spec: DatasetSpec, stored: StoredSplits, is_only: bool, from_folder: bool
) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the validation splits, and that of the test split or None.

    `is_only` says that there is one split, and `from_folder` that the splits are in the folder `--dataset-saved-path`.
    """
    if spec.own:
        validation = [name for name in VALIDATION if name in stored]
        return tuple(validation[:1]), _TEST if _TEST in stored else None
    names = () if is_only else spec.validation
    if from_folder and not names and "validation" in stored:
        names = ("validation",)
    return names, spec.test if spec.test in stored or not from_folder else None


def _hold_out(rows: Dataset, share: float, seed: int | None, running_text: bool) -> tuple[Dataset, Dataset]:
    """Return the remaining rows, and the share that `seed` draws. Both are in file order.

    The lines of one text are held out in one piece, so that both parts remain texts.
    """
    if len(rows) < 2 and running_text:
        raise UserError("the text has one line, and part of it must be held out", "break it into lines")
    if len(rows) < 2:
        raise UserError(f"split 'train' has {len(rows)} row, and part of it must be held out", "give at least 2 rows")
    draw = np.random.default_rng(DATA_SEED if seed is None else seed)
    count = min(max(1, round(share * len(rows))), len(rows) - 1)
    if running_text:
        start = int(draw.integers(len(rows) - count + 1))
        end, length = start + count, len(rows)
        # Slices, because rows that are taken one by one are read slowly.
        rest = concatenate_datasets([rows.select(range(start)), rows.select(range(end, length))])
        return rest, rows.select(range(start, end))
    held = np.zeros(len(rows), bool)
    held[draw.permutation(len(rows))[:count]] = True
    return _selected(rows, ~held), _selected(rows, held)


def _selected(rows: Dataset, chosen: NDArray[np.bool_]) -> Dataset:
    """Return the chosen rows in file order. They are selected in parts, because `select` takes 80 bytes a row."""
    numbers = np.flatnonzero(chosen)
    parts = [rows.select(part) for part in np.array_split(numbers, -(-len(numbers) // _AT_ONCE))]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)
