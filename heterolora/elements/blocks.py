"""Running a network with some of its blocks replaced, during one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def replaced(blocks: nn.ModuleList, layers: range, output: Tensor | None = None) -> Iterator[None]:
    """The blocks `layers` in the list of the network's blocks do not run: each returns `output`, or its input if that
    is None.
    """
    kept, stand_in = [blocks[layer] for layer in layers], _StandIn(output)
    try:
        for layer in layers:
            blocks[layer] = stand_in
        yield
    finally:
        for layer, block in zip(layers, kept, strict=True):
            blocks[layer] = block


class _StandIn(nn.Module):
    def __init__(self, output: Tensor | None) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x if self.output is None else self.output
