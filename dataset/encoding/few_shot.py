"""The examples of `--few-shot`: answered questions before each question of multiple choice that is measured.

They are the first rows of their split in file order, so that every run has the same ones. A row is never its own
example.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import repeat

from datasets import Dataset

from dataset.encoding.render import EXAMPLES, rendered
from dataset.reading.source import Splits
from dataset.spec import DatasetSpec

BETWEEN = "\n\n"  # after each example


def with_examples(splits: Splits, spec: DatasetSpec, count: int) -> Splits:
    """Return the splits with up to `count` examples for each measured row, as the column `EXAMPLES`.

    Training rows have no examples. Raises UserError in the same cases as `dataset.encoding.render.render`.
    """
    pool = _pool(spec, splits.examples, count + 1)
    made: dict[int, Dataset] = {}  # by id of the split: one may serve as validation and test
    for rows in (*splits.validation.values(), *splits.test.values()):
        if id(rows) not in made:
            others = ([each for each in pool.get(group, ()) if each != own] for group, own in _solved(spec, rows))
            made[id(rows)] = rows.add_column(EXAMPLES, [json.dumps(each[:count]) for each in others])
    return splits.replaced(lambda rows: made.get(id(rows), rows))


def _pool(spec: DatasetSpec, source: Dataset, most: int) -> dict[str | None, list[str]]:
    """Return up to `most` different examples for each group: one more than needed, as a row may be one of them."""
    pool: dict[str | None, list[str]] = {}
    for group, example in _solved(spec, source):
        found = pool.setdefault(group, [])
        if len(found) < most and example not in found:
            found.append(example)
        if group is None and len(found) == most:  # all rows are of this group
            break
    return pool


def _solved(spec: DatasetSpec, rows: Dataset) -> Iterator[tuple[str | None, str]]:
    """Yield the group of each row, or None, and its prompt with the right choice."""
    column = spec.choices.group if spec.choices else None
    groups = repeat(None) if column is None else iter(rows[column])
    texts = (row for batch in rendered(rows, spec) for row in batch.to_pylist())
    for group, row in zip(groups, texts, strict=False):
        yield group, f"{row['prompt']}{spec.cue}{json.loads(row['choices'])[row['label']]}"
