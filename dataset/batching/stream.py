"""Batches of rows that are read while a run trains on them, and that a resumed run continues bit for bit.

The rows are divided into as many parts as all processes have workers together. Each part is read in blocks. The rows of
a block are encoded, shuffled among each other, and those of similar length share a batch. When a part ends, it begins
again, with its files in another order.

A position is the state of `datasets` before the block, and the number of batches that were taken of the block. A
resumed run reads the block again: `datasets` itself would forget the rows of its shuffle buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from dataset.batching.loader import Rows, outlive_sigterm
from dataset.batching.sampler import epoch_order
from heterolora.common.distributed import gather_lists
from heterolora.common.errors import UserError
from heterolora.common.outside import reading
from heterolora.saliency.problem import Batch


@dataclass(frozen=True)
class Position:
    """Where a part is read. `source` is the state of `datasets` before the block; None: the beginning."""

    part: int
    round: int = 0  # how often the part was read before
    block: int = 0
    batches: int = 0  # that were taken of the block
    source: dict[str, Any] | None = None

    def random(self, *more: int) -> int:
        """Return a number of 32 bits that depends on part, round and `more`."""
        return int(np.random.SeedSequence([self.part, self.round, *more]).generate_state(1)[0])


@dataclass(frozen=True)
class Streamed:
    """How a stream becomes batches.

    Attributes:
        name: of the data set, for messages.
        rows: the stream.
        encode: makes token ids of some rows.
        collate: makes a batch of encoded rows.
        batch_size: rows of a batch.
        buffer: rows of a block.
        seed: of the order.
        grouped: whether rows of similar length share a batch, and `accumulate` batches.
        accumulate: batches of an optimizer step.
        parts: into how many the stream is divided.
    """

    name: str
    rows: IterableDataset
    encode: Callable[[Dataset], Dataset]
    collate: Callable[[list[dict[str, Any]]], Batch]
    batch_size: int
    buffer: int
    seed: int
    grouped: bool
    accumulate: int
    parts: int

    def batches(self, at: Position) -> Iterator[tuple[Batch, Position]]:
        """Yield batches without end, and the position after each. Raises UserError if the part has no row."""
        while True:
            found = False
            for start, encoded in self._blocks(at):
                found = True
                order = self._order(encoded, start)
                for number in range(start.batches, len(order)):
                    rows = Rows(encoded).__getitems__(order[number].tolist())
                    yield self.collate(rows), replace(start, batches=number + 1)
            if not found:
                what = f"one of {self.parts} parts of data set '{self.name}' has no rows"
                raise UserError(what, "use fewer --num-workers and devices, or more rows")
            at = Position(at.part, at.round + 1)

    def _blocks(self, at: Position) -> Iterator[tuple[Position, Dataset]]:
        """Yield the position at the start of each block of a round, or inside of the first one, and its rows."""
        rows = split_dataset_by_node(self.rows, at.part, self.parts).with_format("arrow")
        rows.set_epoch(Position(0, at.round).random(self.seed))  # which draws the order of the files
        if at.source is not None:
            rows.load_state_dict(at.source)
        for table in self._tables(rows):
            yield at, self.encode(Dataset(table))
            at = Position(at.part, at.round, at.block + 1, source=deepcopy(rows.state_dict()))

    def _tables(self, rows: IterableDataset) -> Iterator[pa.Table]:
        with reading("the data set", self.name, "write its files again"):
            yield from rows.iter(self.buffer)

    def _order(self, encoded: Dataset, at: Position) -> list[np.ndarray]:
        """Return the rows of each batch of a block."""
        size, lengths = self.batch_size, encoded["length"][:] if self.grouped else None
        order = epoch_order(len(encoded), self.seed, at.random(at.block), True, size * self.accumulate, lengths)
        return np.split(order, range(size, len(order), size)) if len(order) else []


class _Reader(TorchIterableDataset):
    """Yields the batches of the part of this worker, from its position in `starts`. A mistake is yielded too, because
    the loader would not give it to the main process as it is.
    """

    def __init__(self, streamed: Streamed) -> None:
        self.streamed, self.starts = streamed, list[Position]()

    def __iter__(self) -> Iterator[tuple[Batch, Position] | UserError]:
        info = get_worker_info()
        try:
            yield from self.streamed.batches(self.starts[0 if info is None else info.id])
        except UserError as error:
            yield error


class StreamingLoader(DataLoader):
    """A DataLoader of `length` batches of a stream. Lightning saves and restores its position with the training loop.

    An epoch of Lightning is a whole run. The next one goes on in the stream. `identity` are values that a position
    depends on, beside those of the stream.
    """

    def __init__(
        self,
        streamed: Streamed,
        length: int,
        rank: int = 0,
        num_workers: int = 0,
        pin_memory: bool = False,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self._reader = _Reader(streamed)
        super().__init__(
            self._reader,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=num_workers,
            pin_memory=pin_memory,
            worker_init_fn=outlive_sigterm,
            # A loader draws a seed when it starts. Its own generator keeps the global random state unchanged.
            generator=torch.Generator().manual_seed(streamed.seed),
        )
        self._length, self._position = length, 0
        workers = max(1, num_workers)
        self._mine = slice(rank * workers, (rank + 1) * workers)
        #: Of the workers, in the order in which their next batches come.
        self._positions = [Position(part) for part in range(streamed.parts)[self._mine]]
        self._identity = {
            "seed": streamed.seed,
            "batch size": streamed.batch_size,
            "devices × workers": streamed.parts,
            "--shuffle-buffer": streamed.buffer,
            **(identity or {}),
        }

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]  # of any kind
        self._reader.starts = self._positions
        start, self._position = self._position, 0
        for number, found in enumerate(islice(super().__iter__(), self._length - start), start + 1):
            if isinstance(found, UserError):
                raise found
            batch, position = found
            self._positions = [*self._positions[1:], position]
            self._position = number
            yield batch
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of all processes. All of them must call it."""
        positions = gather_lists([asdict(position) for position in self._positions])
        return {"position": self._position, "length": self._length, "positions": positions, **self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch that was taken. Raises UserError if it was of another stream."""
        for name, value in self._identity.items():
            if state.get(name) != value:
                raise UserError(
                    f"the checkpoint is from a run with {name} {state.get(name)}, this one has {value}",
                    "resume with the same data, seed, batch size, devices and --num-workers",
                )
        self._position = 0 if state["position"] >= state["length"] else state["position"]
        self._positions = [Position(**position) for position in state["positions"][self._mine]]


def _unchanged(found: Any) -> Any:
    return found
