"""The blocks of a network, and running it with some of them replaced, during one call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, nn

from heterolora.elements.family import Family


def blocks_of(network: nn.Module, family: Family) -> nn.ModuleList:
    """The blocks of a Transformers model, in order."""
    base = cast(nn.Module, network.base_model)
    return cast(nn.ModuleList, base.get_submodule(family.blocks))


def has_place(block: nn.Module, family: Family, name: str) -> bool:
    """Whether a block has the place `name`. Only some blocks have the layers of experts, for example."""
    path = family.linears.get(name)
    try:
        return path is None or block.get_submodule(path) is not None
    except AttributeError:
        return False


@contextmanager
def replaced(blocks: nn.ModuleList, layers: range, output: Tensor | None = None) -> Iterator[None]:
    """Replace blocks in the network's list: each of `layers` returns `output`, or its input if that is None."""
    kept, stand_in = [blocks[layer] for layer in layers], _StandIn(output)
    try:
        for layer in layers:
            blocks[layer] = stand_in
        yield
    finally:
        for layer, block in zip(layers, kept, strict=True):
            blocks[layer] = block


class _StandIn(nn.Module):
    """Takes the place of a block, whatever its other arguments are."""

    def __init__(self, output: Tensor | None) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """x (rows, tokens, width) -> the output of the block, of the same shape."""
        return x if self.output is None else self.output
