"""The search space: all elements of an adapted network in one typed list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from heterolora.elements.blocks import has_place
from heterolora.elements.element import KINDS, SHORTCUTS, Element, Kind, Place
from heterolora.elements.family import Family
from heterolora.elements.low_rank import LowRank
from heterolora.elements.shortcut import Carry


@dataclass(frozen=True)
class SearchSpace:
    """All elements of one network, ordered by block and, within a block, LoRA in table order, then shortcuts.

    Attributes:
        low_ranks: the low-rank map of each candidate (rank > 0 and not disabled).
        blocks: the Transformer blocks, in order; empty for a network without a family table.
        pre_norm: whether the blocks normalise before each half, not after it.
        carry: passes h from one block to the next; code that runs a single block must put the previous h there.
    """

    low_ranks: tuple[LowRank, ...]
    blocks: tuple[nn.Module, ...] = ()
    family: Family | None = None
    pre_norm: bool = True
    carry: Carry = field(default_factory=Carry)

    def __iter__(self) -> Iterator[LowRank]:
        return iter(self.low_ranks)

    def __len__(self) -> int:
        return len(self.low_ranks)

    @property
    def elements(self) -> tuple[Element, ...]:
        return tuple(low_rank.element for low_rank in self)

    @property
    def parameters(self) -> list[Tensor]:
        """A and B of the first element, A and B of the second, …"""
        return [parameter for low_rank in self for parameter in (low_rank.A, low_rank.B)]

    def of_kind(self, kind: Kind) -> tuple[LowRank, ...]:
        return tuple(low_rank for low_rank in self if low_rank.element.kind == kind)

    def places(self, kind: Kind | None = None) -> tuple[Place, ...]:
        """All places of one kind, by block: also those where the configuration has no element, but outside of the
        blocks only those with one. By default those of each kind that has an element.
        """
        if kind is None:
            return tuple(place for each in KINDS if self.of_kind(each) for place in self.places(each))
        if self.family is None:
            return tuple(low_rank.element for low_rank in self.of_kind(kind))
        family, names = self.family, tuple(self.family.places) if kind == "lora" else SHORTCUTS
        places = [
            Place(layer, name)
            for layer, block in enumerate(self.blocks)
            for name in names
            if (layer, name) != (0, "shortcut2") and has_place(block, family, name)
        ]
        outside = (each.element for each in self.of_kind(kind) if each.element.is_outside)
        places += [Place(element.layer, element.name) for element in outside]
        return tuple(sorted(places, key=lambda place: place.layer))  # stable

    @property
    def device(self) -> torch.device:
        """The device of the first element."""
        return self.low_ranks[0].A.device

    def on(self, kind: Kind | None = None) -> tuple[LowRank, ...]:
        """The elements (of one kind) that are on."""
        return tuple(low_rank for low_rank in self if low_rank.enabled and kind in (None, low_rank.element.kind))

    def frozen_blocks(self, probed: bool = False) -> int:
        """The number of blocks, from the first, that compute what they do without elements, and are not looked into.

        `shortcut2` looks into the block before. `probed`: elements that a probe observes count as elements that are on.
        """
        number = len(self.blocks)
        looks_into = (
            low_rank.element.after(number) - (low_rank.element.name == "shortcut2")
            for low_rank in self
            if (low_rank.present if probed else low_rank.enabled)
        )
        return min(looks_into, default=number)

    def switch(self, keys: frozenset[str] | set[str]) -> None:
        """Turn on the elements with these keys and turn off all others."""
        for low_rank in self:
            low_rank.switch(low_rank.element.key in keys)
