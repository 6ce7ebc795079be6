"""Rows to predict: what the model reads of them, and all of their columns, which the output keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from dataset.reading.checked import checked_texts
from dataset.reading.stored import Stored, StoredSplits, stored_splits
from dataset.spec import DatasetSpec, Wanted
from heterolora.common.errors import UserError

TEST, INPUT = "test", "input"  # the split of a folder, and the column of texts that no file holds
_LINE_ENDS = "\r\n"


@dataclass(frozen=True)
class NewRows:
    """The rows of an input, in its order."""

    texts: Dataset  # the columns `spec.inputs`, checked
    kept: Sequence[Mapping[str, Any]]  # all columns of the input
    notes: tuple[str, ...] = ()  # lines to print


def read_new_rows(spec: DatasetSpec) -> NewRows:
    """Read the rows at the place of `spec`. Labels and responses need not be there.

    Raises UserError as `dataset.reading.source.read_splits` does.
    """
    name, stored = _only_split(spec, stored_splits(spec))
    notes = [f"the rows of split '{name}' of {spec.name} are predicted"] if name == TEST else []
    where = f"data set '{spec.name}'"
    kept, wanted = stored.rows(), Wanted(spec.inputs, nested=_nested(spec))
    texts = checked_texts(spec, wanted, where, stored.read(wanted, False), notes, answered=False)
    if spec.place is not None and spec.place.suffix == ".txt":
        kept, texts = [_without_ends(row) for row in kept], texts.map(_without_ends)
    return NewRows(texts, kept, tuple(notes))


def rows_of_texts(spec: DatasetSpec, texts: Sequence[str]) -> NewRows:
    """Return a row for each text: the text to classify, the prompt, or the turn of the user.

    Raises UserError if the model reads more than one text for a row.
    """
    if spec.choices is not None or (spec.classifies and (spec.texts or len(spec.columns) > 1)):
        raise UserError(
            f"--text is one text, and the model reads the columns {', '.join(spec.inputs)}",
            "give --dataset a file with these columns",
        )
    first, *others = spec.inputs
    if spec.chat:
        made = [{first: json.dumps([{"role": "user", "content": text}])} for text in texts]
    else:
        made = [{first: text, **dict.fromkeys(others, "")} for text in texts]
    return NewRows(Dataset.from_list(made), [{INPUT: text} for text in texts])


def _only_split(spec: DatasetSpec, stored: StoredSplits) -> tuple[str, Stored]:
    """Return the name and the rows of the only split, or of the test split."""
    if len(stored) == 1:
        return next(iter(stored.items()))
    if TEST not in stored:
        raise UserError(f"data set '{spec.name}' has the splits {', '.join(stored)}", "give --dataset one of its files")
    return TEST, stored[TEST]


def _nested(spec: DatasetSpec) -> tuple[str, ...]:
    return tuple(column for column in spec.nested if column in spec.inputs)


def _without_ends(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: text.rstrip(_LINE_ENDS) for name, text in row.items()}
