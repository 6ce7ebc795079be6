"""Running a network with some of its blocks replaced, during one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def replaced(blocks: nn.ModuleList, layers: range, stand_in: nn.Module) -> Iterator[None]:
    """`stand_in` replaces the blocks `layers` in the list of the network's blocks."""
    kept = [blocks[layer] for layer in layers]
    try:
        for layer in layers:
            blocks[layer] = stand_in
        yield
    finally:
        for layer, block in zip(layers, kept, strict=True):
            blocks[layer] = block
