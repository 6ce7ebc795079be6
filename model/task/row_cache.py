"""A cache of one tensor for each row of a data set, within a limit of bytes, in memory or in a file."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from heterolora.common.errors import UserError

_CHUNK = 64 * 2**20  # bytes that are reserved at a time


@dataclass
class _Shelf:
    """The rows of one depth. A row is a slice of the bytes of a chunk."""

    chunks: list[Tensor] = field(default_factory=list)  # uint8
    rows: dict[int, Tensor] = field(default_factory=dict)
    filled: int = 0  # bytes of the last chunk

    def place(self, size: int) -> Tensor | None:
        """The next `size` free bytes of the last chunk, if it has as many."""
        if not self.chunks or self.filled + size > len(self.chunks[-1]):
            return None
        self.filled += size
        return self.chunks[-1][self.filled - size : self.filled]


class RowCache:
    """Keeps tensors by depth (the number of blocks that computed them) and row.

    If there is no room for a row, the rows of the depth that was not used for the longest time are dropped. If the
    current depth is the only one, the row is not kept.

    Args:
        limit: bytes.
        folder: a memory-mapped file in this folder has the tensors. It has no name, so that nothing of it remains after
            the process. None: memory.
        when_full: is called once, with the number of kept rows, when a row is not kept.
    """

    def __init__(self, limit: int, folder: Path | None = None, when_full: Callable[[int], None] | None = None) -> None:
        self.limit, self.folder, self.when_full = limit, folder, when_full
        self._shelves: dict[int, _Shelf] = {}  # the depth that was used last is the last one

    def at(self, depth: int) -> dict[int, Tensor]:
        """Row -> its tensor, on the CPU, of the rows that are kept for this depth. Not to be changed."""
        self._shelves[depth] = self._shelves.pop(depth, _Shelf())
        return self._shelves[depth].rows

    def put(self, depth: int, row: int, tensor: Tensor) -> None:
        """Keep a copy of the tensor, if there is room."""
        rows, shelf, size = self.at(depth), self._shelves[depth], tensor.numel() * tensor.element_size()
        place = shelf.place(size)
        if place is None and self._reserve(shelf, size):
            place = shelf.place(size)
        if place is not None:
            rows[row] = place.view(tensor.dtype).view(tensor.shape).copy_(tensor)
        elif self.when_full is not None:
            self.when_full(len(rows))
            self.when_full = None

    def _reserve(self, shelf: _Shelf, size: int) -> bool:
        """Give the shelf, which is the last one, a chunk of at least `size` bytes. Returns whether there is room."""
        while self._left() < size and len(self._shelves) > 1:
            del self._shelves[next(iter(self._shelves))]
        if self._left() < size:
            return False
        shelf.chunks.append(self._chunk(max(size, min(_CHUNK, self._left()))))
        shelf.filled = 0
        return True

    def _left(self) -> int:
        return self.limit - sum(len(chunk) for shelf in self._shelves.values() for chunk in shelf.chunks)

    def _chunk(self, size: int) -> Tensor:
        if self.folder is None:
            return torch.empty(size, dtype=torch.uint8)
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(bytes(size))  # a full disk is found here, not as a crash at an access to the mapped memory
                file.flush()
                return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
        except OSError as error:
            raise UserError(
                f"cannot write into --cache-folder '{self.folder}' ({error.strerror})",
                "free space, or give another folder or a smaller --cache-limit",
            ) from error
