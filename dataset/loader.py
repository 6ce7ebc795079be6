"""A loader that remembers how far it was read, so that a resumed run gets exactly the batches that are left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dataset.sampler import GlobalBatchSampler
from heterolora.errors import UserError


class Rows(TorchDataset):
    """Encoded rows by index, each with its `index` and `weight`: 1, or 0 for a filler, whose index i comes as ~i."""

    def __init__(self, encoded: Dataset) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """One row each, read at once."""
        real = [index if index >= 0 else ~index for index in indices]
        columns = self.encoded[real]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        for row, asked, index in zip(rows, indices, real, strict=True):
            row.update(index=index, weight=float(asked >= 0))
        return rows


class ResumableLoader(DataLoader):
    """A DataLoader over `GlobalBatchSampler` whose position Lightning saves and restores with its training loop.

    The position is the number of batches *consumed*, not fetched: workers run ahead. Iterating is lazy, and the order
    of the epoch is taken at the first `next`: Lightning asks for the iterator before it tells the epoch.

    Args:
        encoded: the rows.
        sampler: which of them, in what order.
        collate: rows → batch.
        num_workers: processes that read and collate; they are kept from epoch to epoch.
        pin_memory: for batches that go to a GPU.
    """

    def __init__(
        self,
        encoded: Dataset,
        sampler: GlobalBatchSampler,
        collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        super().__init__(
            Rows(encoded),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # A stream of its own: a loader draws a seed whenever it starts, which must not move anybody's dropout.
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self._epoch, self._position = -1, 0  # what was consumed, of which epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._epoch, self._position = self.batch_sampler.epoch, self.batch_sampler.start
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        sampler = self.batch_sampler
        position = self._position if sampler.epoch == self._epoch else sampler.start
        return {"epoch": sampler.epoch, "position": position, **sampler.identity}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the last consumed batch; after the last of an epoch, with the next epoch.

        Raises:
            UserError: the position is one in other batches.
        """
        for what, value in self.batch_sampler.identity.items():
            if state[what] != value:
                raise UserError(
                    f"the checkpoint is from a run with {what} {state[what]}, this one has {value}",
                    "resume with the same data, seed and global batch size",
                )
        self._epoch = -1
        if state["position"] >= len(self):
            self.batch_sampler.resume(state["epoch"] + 1, 0)
        else:
            self.batch_sampler.resume(state["epoch"], state["position"])
