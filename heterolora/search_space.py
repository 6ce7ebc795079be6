"""The search space: every place of an adapted network where an element sits, in one typed list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from heterolora.config import Kind
from heterolora.element import Place
from heterolora.family import Family
from heterolora.low_rank import LowRank
from heterolora.shortcut import Carry


@dataclass(frozen=True)
class Element(Place):
    """One candidate.

    Attributes:
        kind: `lora` or `shortcut`.
        module: the library's own path of what the element stands beside: of the linear layer for LoRA
            (`model.decoder.layers.0.self_attn.q_proj`), of the block for a shortcut (`model.decoder.layers.0`).
        low_rank: the parameters and the switch.
    """

    kind: Kind
    module: str
    low_rank: LowRank

    @property
    def parameters(self) -> int:
        """r · (in + out)."""
        return self.low_rank.A.numel() + self.low_rank.B.numel()


@dataclass(frozen=True)
class SearchSpace:
    """All elements of one network, ordered by block and, within a block, LoRA in table order, then shortcuts.

    Attributes:
        elements: the candidates (rank > 0 and not disabled).
        blocks: the Transformer blocks, in order.
        family: the table of its architecture.
        pre_norm: whether the blocks normalise before each half (else after).
        carry: what takes h across the border of two blocks; whoever runs one block alone puts the h before it there.
    """

    elements: tuple[Element, ...]
    blocks: tuple[nn.Module, ...]
    family: Family
    pre_norm: bool
    carry: Carry

    def __iter__(self) -> Iterator[Element]:
        return iter(self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    def of_kind(self, kind: Kind) -> tuple[Element, ...]:
        return tuple(element for element in self.elements if element.kind == kind)
