"""Single ranks of elements as units of a search that turns them off one by one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from heterolora.common.errors import UserError
from heterolora.elements.element import alpha_of
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace

#: What is turned on and off: a whole element, or a single rank of one.
Units = Literal["element", "rank"]
UNITS: tuple[Units, ...] = ("element", "rank")


class RankUnit:
    """One rank of an element: a row of A and a column of B, of each expert. It has the attributes of `LowRank` that a
    search uses.

    A rank that is off has rows and columns of zeros. Then their gradients are zero too, so that an optimizer which
    has no state for them leaves them as they are; see `forget`. An element whose ranks are all off is off.
    """

    def __init__(self, whole: LowRank, index: int) -> None:
        self.whole, self.index = whole, index
        # The maps of several experts share a tensor: A has their ranks one after the other, and B in turn.
        rank, experts = whole.element.rank, len(whole.A) // whole.element.rank
        self._rows = (slice(index, None, rank), slice(None))
        self._columns = (slice(None), slice(index * experts, (index + 1) * experts))
        self.element = whole.element.single(index)
        self.enabled = whole.enabled and bool(whole.A.detach()[self._rows].any())

    @property
    def A(self) -> Tensor:
        """(experts, in), with its gradient"""
        return _part(self.whole.A, self._rows)

    @property
    def B(self) -> Tensor:
        """(out, experts), with its gradient"""
        return _part(self.whole.B, self._columns)

    @torch.no_grad()
    def switch(self, on: bool) -> None:
        """Turn the rank on or off. What it had learnt is lost: on again, it starts as a new one."""
        if on == self.enabled:
            return
        self.enabled = on
        if on:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        else:
            self.A.zero_()
            self.B.zero_()
        self.whole.switch(bool(self.whole.A.any()))

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """Remove the state that the optimizer has for this rank, such as its momentum."""
        for weight, part in ((self.whole.A, self._rows), (self.whole.B, self._columns)):
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    if not value.is_floating_point():  # a code, in which 0 is not the value 0
                        found = (
                            f"the state of {type(optimizer).__name__} is quantised, and ranks are turned off one by one"
                        )
                        raise UserError(found, "use an optimizer whose state is not, or units='element'")
                    value[part] = 0


def rank_units(space: SearchSpace) -> SearchSpace:
    """The ranks of all elements as a search space of their own."""
    units = [RankUnit(low_rank, index) for low_rank in space for index in range(low_rank.element.rank)]
    return SearchSpace(tuple(cast(list[LowRank], units)))


def forget_off(space: SearchSpace, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Remove what the optimizers know of the ranks of `rank_units` that are off."""
    for unit in cast(Iterable[RankUnit], space):
        for optimizer in () if unit.enabled else optimizers:
            unit.forget(optimizer)


@torch.no_grad()
def compact_ranks(space: SearchSpace) -> None:
    """Remove the ranks that are off from the elements that are on. What they compute does not change."""
    for low_rank in space.on():
        (A, B), element = low_rank.by_expert, low_rank.element
        kept = A.any(-1).any(0)  # (r,)
        rank = int(kept.sum())
        if rank == element.rank:
            continue
        alpha = alpha_of(low_rank.scaling, rank, element.settings.use_rslora)
        low_rank.element = replace(element, settings=replace(element.settings, rank=rank, alpha=alpha))
        low_rank.A = nn.Parameter(A[:, kept].flatten(0, 1))
        low_rank.B = nn.Parameter(B[:, :, kept].permute(1, 2, 0).flatten(1))


def _part(weight: nn.Parameter, part: tuple[slice, slice]) -> Tensor:
    found = weight.detach()[part]
    found.grad = None if weight.grad is None else weight.grad[part]
    return found
