"""A data loader that saves its position, so that a resumed run gets exactly the remaining batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from dataset.batching.sampler import GlobalBatchSampler
from heterolora.common.errors import UserError
from heterolora.saliency.problem import Batch


class Rows(TorchDataset):
    """Encoded rows with `index` and `weight`. The weight is 1, or 0 for a filler, which is requested as ~index."""

    def __init__(self, encoded: Dataset) -> None:
        self.encoded = encoded

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        real = [index if index >= 0 else ~index for index in indices]
        columns = {**self.encoded[real], "index": real, "weight": [float(index >= 0) for index in indices]}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


_GRACE = 60  # seconds that a worker outlives SIGTERM, in which the main process ends its step and saves


def outlive_sigterm(_worker: int) -> None:
    """Keep a worker alive: a signal may reach all processes of a run, and a dead one would end the main process."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))


class ResumableLoader(DataLoader):
    """A DataLoader over `GlobalBatchSampler`. Lightning saves and restores its position with the training loop.

    The position is the number of consumed batches, not of fetched batches, because workers read ahead. The order of
    the epoch is read at the first `next`, because Lightning creates the iterator before it sets the epoch. The worker
    processes stay alive between epochs. `identity` has values beside the sampler's that a position depends on.
    """

    def __init__(
        self,
        encoded: Dataset,
        sampler: GlobalBatchSampler,
        collate: Callable[[list[dict[str, Any]]], Batch],
        num_workers: int = 0,
        pin_memory: bool = False,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            Rows(encoded),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=outlive_sigterm,
            # A loader draws a seed when it starts. Its own generator keeps the global random state unchanged.
            generator=torch.Generator().manual_seed(sampler.seed),
        )
        self._order = sampler
        self._epoch, self._position = -1, 0  # the epoch that was iterated, and its consumed batches
        self._identity = {**sampler.identity, **(identity or {})}

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # of any kind
        self._epoch, self._position = self._order.epoch, self._order.start
        for batch in super().__iter__():
            self._position += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        epoch = self._order.epoch
        position = self._position if epoch == self._epoch else self._order.start
        return {"epoch": epoch, "position": position, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last consumed batch, or with the next epoch if it was the last batch of its epoch.

        Raises UserError if the position was saved for other batches.
        """
        for name, value in self._identity.items():
            if state.get(name, value) != value:  # older versions recorded less
                raise UserError(
                    f"the checkpoint is from a run with {name} {state[name]}, this one has {value}",
                    "resume with the same data, seed and global batch size",
                )
        self._epoch = -1
        finished = state["position"] >= len(self)
        self._order.resume(state["epoch"] + finished, 0 if finished else state["position"])
