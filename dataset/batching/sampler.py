"""Assigns rows to batches, as a pure function of seed and epoch that does not depend on the number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

# Rows are sorted by length within windows of up to this many global batches, and at most a quarter of the rows, so that
# the batches still differ from epoch to epoch.
_WINDOW = 256


def epoch_order(
    n: int, seed: int, epoch: int, shuffle: bool = True, global_batch: int = 1, lengths: ArrayLike | None = None
) -> np.ndarray:
    """Return the order of the rows in an epoch, (n,) int64. Global batch j is its j-th slice of `global_batch` rows.

    Args:
        n: number of rows.
        seed: seed of the run.
        epoch: number of the epoch, from 0.
        shuffle: whether to shuffle. Otherwise the rows stay in file order, unless there are `lengths`.
        global_batch: rows of a global batch. Only used with `lengths`.
        lengths: tokens of each row. If given, rows of similar length share a batch: the rows are shuffled, sorted
            within windows, and the full batches are shuffled. A short last batch stays last. Without `shuffle` all rows
            are sorted, the longest first. Equal lengths change nothing.
    """
    sizes = None if lengths is None or n == 0 or np.ptp(lengths) == 0 else np.asarray(lengths)
    if not shuffle:
        return np.arange(n) if sizes is None else np.argsort(-sizes, kind="stable")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(n)
    if sizes is None:
        return order
    global_batch = min(global_batch, n)
    window = global_batch * max(1, min(n // (4 * global_batch), _WINDOW))
    for start in range(0, n, window):
        part = order[start : start + window]
        order[start : start + window] = part[np.argsort(-sizes[part], kind="stable")]
    full = n // global_batch
    batches = order[: full * global_batch].reshape(full, global_batch)
    return np.concatenate([batches[rng.permutation(full)].reshape(-1), order[full * global_batch :]])


@dataclass(eq=False)
class GlobalBatchSampler(Sampler[list[int]]):
    """Yields this process's share of every global batch.

    A global batch has the same rows for every number of processes with the same global batch size. Rank r of w takes
    every w-th row of it, starting with the r-th. No row is repeated, so metrics are exact. A rank without a row in the
    last batch gets a filler, so that all ranks have the same number of batches. A filler is the bitwise complement
    `~i` of the index i of some row. `dataset.batching.loader.Rows` gives it weight 0.

    `n`, `seed`, `shuffle` and `lengths` are the arguments of `epoch_order`.
    """

    n: int
    batch_size: int  # rows per batch and process
    seed: int = 0
    rank: int = 0
    world: int = 1  # number of processes
    shuffle: bool = False
    lengths: ArrayLike | None = None
    accumulate: int = 1  # batches of an optimizer step, whose rows have similar lengths together
    epoch: int = field(default=0, init=False)  # of the next iteration
    start: int = field(default=0, init=False)  # the first batch of the next iteration

    @property
    def sampler(self) -> GlobalBatchSampler:
        """The sampler itself. Lightning calls `set_epoch` on a batch sampler's `sampler`."""
        return self

    @property
    def identity(self) -> dict[str, int]:
        """The values that a position within an epoch depends on, for every number of processes."""
        return {"rows": self.n, "seed": self.seed, "global batch size": self.batch_size * self.world}

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch. A different epoch starts with its first batch."""
        if epoch != self.epoch:
            self.resume(epoch, 0)

    def resume(self, epoch: int, start: int) -> None:
        """Start the next iteration with batch `start` of `epoch`. Later iterations start with the first batch."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, which is the same on every rank."""
        return -(-self.n // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size * self.world
        order = epoch_order(self.n, self.seed, self.epoch, self.shuffle, size * self.accumulate, self.lengths)
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            rows = order[batch * size : (batch + 1) * size]
            mine = rows[self.rank :: self.world]
            yield mine.tolist() if len(mine) else [~int(rows[0])]
