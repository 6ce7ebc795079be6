"""Which rows make up which batch, as a pure function of (seed, epoch), whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

# Rows are sorted by length within mega-batches of up to this many global batches, so that batches of one epoch still
# differ from those of the next (the proportions of transformers' LengthGroupedSampler).
_MEGA_BATCH = 50


def epoch_order(
    n: int, seed: int, epoch: int, shuffle: bool = True, global_batch: int = 1, lengths: Sequence[int] | None = None
) -> np.ndarray:
    """The order of `n` rows in an epoch: global batch j is rows [j·global_batch, (j+1)·global_batch) of it.

    Args:
        n: number of rows.
        seed: of the run.
        epoch: from 0.
        shuffle: false keeps file order.
        global_batch: rows of a global batch; only grouping needs it.
        lengths: tokens of each row; given, rows of similar length share a batch: they are sorted within mega-batches
            of the shuffled order, and the full batches are then shuffled. A short last batch stays the last.

    Returns:
        (n,) int64, a permutation of 0 … n−1.
    """
    if not shuffle:
        return np.arange(n)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(n)
    if lengths is None:
        return order
    lengths = np.asarray(lengths)
    mega = global_batch * max(1, min(n // (4 * global_batch), _MEGA_BATCH))
    for start in range(0, n, mega):
        part = order[start : start + mega]
        order[start : start + mega] = part[np.argsort(-lengths[part], kind="stable")]
    full = n // global_batch
    batches = order[: full * global_batch].reshape(full, global_batch)
    return np.concatenate([batches[rng.permutation(full)].reshape(-1), order[full * global_batch :]])


class GlobalBatchSampler(Sampler[list[int]]):
    """This process's share of every global batch.

    Global batch j holds the same rows for every number of processes that has the same global batch size; rank r of w
    takes every w-th of them from the r-th on. No row is repeated, so that metrics are exact. A rank without a row in
    the last batch gets a filler instead, the bitwise complement `~i` of some row's index i, so that all ranks have the
    same number of batches; `dataset.loader.Rows` gives it weight 0.

    Args:
        n: number of rows.
        batch_size: rows per batch and process.
        seed: of the order.
        rank: of this process.
        world: number of processes.
        shuffle: false keeps file order.
        lengths: tokens of each row, to group rows of similar length.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self.rank, self.world, self.shuffle, self.lengths = rank, world, shuffle, lengths
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> GlobalBatchSampler:
        """Itself: Lightning looks for `set_epoch` on a batch sampler's `sampler`."""
        return self

    @property
    def identity(self) -> dict[str, int]:
        """What a position within an epoch depends on, whatever the number of processes."""
        return {"rows": self.n, "seed": self.seed, "global batch size": self.batch_size * self.world}

    def set_epoch(self, epoch: int) -> None:
        """A position belongs to its epoch: another epoch starts from its first batch."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def resume(self, epoch: int, start: int) -> None:
        """The next iteration of `epoch` begins with its batch `start`; the ones after it with the first."""
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        return -(-self.n // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        size = self.batch_size * self.world
        order = epoch_order(self.n, self.seed, self.epoch, self.shuffle, size, self.lengths)
        start, self.start = self.start, 0
        for batch in range(start, len(self)):
            rows = order[batch * size : (batch + 1) * size]
            mine = rows[self.rank :: self.world]
            yield mine.tolist() if len(mine) else [~int(rows[0])]
