"""Batches of rows to predict."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
from datasets import Dataset

from dataset.batching.collate import Collator
from dataset.batching.loader import Rows
from dataset.batching.sampler import epoch_order
from heterolora.saliency.problem import Batch


class NewBatches:
    """Batches of rows of similar length, the longest first. Batch i is that of process i modulo `world`.

    The rows of a batch do not depend on the number of processes, nor on which rows are done already. So the predictions
    do not either. A batch whose rows are all done is left out. If a process would have one batch less than another, it
    gets the last one again, as filler rows: in a sharded model every process must run as many passes.
    """

    def __init__(
        self,
        encoded: Dataset,
        collate: Collator,
        batch_size: int,
        done: Collection[int] = (),
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._rows, self._collate = Rows(encoded), collate
        lengths = encoded.with_format("numpy")["length"][:]
        order = epoch_order(len(encoded), 0, 0, shuffle=False, lengths=lengths)
        batches = np.split(order, range(batch_size, len(order), batch_size))
        done = set(done)
        left = [(number, rows) for number, rows in enumerate(map(np.ndarray.tolist, batches)) if not done >= {*rows}]
        self._mine = left[rank::world]
        if len(self._mine) * world < len(left):
            number, rows = left[-1]
            self._mine.append((number, [~row for row in rows]))

    def __len__(self) -> int:
        return len(self._mine)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, each with its `number`."""
        for number, rows in self._mine:
            yield {**self._collate(self._rows.__getitems__(rows)), "number": number}
