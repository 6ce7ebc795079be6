"""The examples of `--few-shot`: answered questions before each question of multiple choice that is measured.

They are the first rows of their split in file order, so that every run has the same ones. A row is never its own
example.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from datasets import Dataset

from dataset.encoding.render import EXAMPLES, rendered
from dataset.reading.source import Splits
from dataset.spec import DatasetSpec

BETWEEN = "\n\n"  # after each example


def with_examples(splits: Splits, spec: DatasetSpec, source: Dataset, count: int) -> Splits:
    """Returns the splits with up to `count` examples for each measured row, as the column `EXAMPLES`.

    `source` are the rows that the examples come from. Training rows have no examples. Raises UserError in the same
    cases as `dataset.encoding.render.render`.
    """
    pool = _pool(spec, source, count + 1)
    measured = {id(rows): rows for rows in (*splits.validation.values(), *splits.test.values())}
    made = {key: _exemplified(rows, spec, pool, count) for key, rows in measured.items()}

    def of(named: Any) -> dict[str, Dataset]:
        return {name: made[id(rows)] for name, rows in named.items()}

    train = made.get(id(splits.train), splits.train)  # the same rows if all of them are measured
    return replace(splits, train=train, validation=of(splits.validation), test=of(splits.test))


def _pool(spec: DatasetSpec, source: Dataset, most: int) -> dict[str | None, list[str]]:
    """Returns up to `most` different examples for each group: one more than needed, as a row may be one of them."""
    pool: dict[str | None, list[str]] = {}
    for group, example in _solved(spec, source):
        found = pool.setdefault(group, [])
        if len(found) < most and example not in found:
            found.append(example)
        if spec.choices.group is None and len(found) == most:
            break
    return pool


def _exemplified(rows: Dataset, spec: DatasetSpec, pool: dict[str | None, list[str]], count: int) -> Dataset:
    columns = [
        json.dumps([example for example in pool.get(group, ()) if example != own][:count])
        for group, own in _solved(spec, rows)
    ]
    return rows.add_column(EXAMPLES, columns)


def _solved(spec: DatasetSpec, rows: Dataset) -> Iterator[tuple[str | None, str]]:
    """Yields the group of each row, and its prompt with the right choice."""
    column = spec.choices.group
    groups = iter(rows[column]) if column is not None else None
    for batch in rendered(rows, spec):
        for row in batch.to_pylist():
            right = json.loads(row["choices"])[row["label"]]
            yield None if groups is None else next(groups), f"{row['prompt']}{spec.cue}{right}"
