"""How long a training step takes with some elements on, and the best elements within a time. Pure functions.

The forward pass runs the whole network. The backward pass ends at the lowest block that has an element that is on. So

    time = forward + (blocks - lowest) · block + width · Σ (in + out) over the elements that are on

With experts, in + out counts once for each.

The time of an element grows with its widths; its rank, which is small, hardly matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from heterolora.choosing.allocation import Scored
from heterolora.elements.element import Element

_UNITS = 4096  # widths are rounded up to a total of at most this many units
_ROUNDING = 1e-9  # relative; a share of 1 pays for every element


@dataclass(frozen=True)
class StepTime:
    """The measured constants of a network, in seconds.

    Attributes:
        blocks: number of Transformer blocks.
        forward: the forward pass without elements.
        block: the backward pass of a block without elements.
        width: forward and backward pass of an element, divided by in + out.
    """

    blocks: int
    forward: float
    block: float
    width: float

    def of(self, on: Iterable[Element]) -> float:
        """Seconds of a step with the elements `on`."""
        on = list(on)
        lowest = min((element.after(self.blocks) for element in on), default=self.blocks)
        return self.fixed(lowest) + self.width * sum(map(_width, on))

    def fixed(self, lowest: int) -> float:
        """Seconds of a step whose backward pass ends at block `lowest`, without the elements themselves."""
        return self.forward + (self.blocks - lowest) * self.block


def best_within(order: Sequence[Scored], always: Sequence[Element], time: StepTime, seconds: float) -> frozenset[str]:
    """The keys of the elements of `order` with the largest sum of scores that, with `always`, take at most `seconds`.

    The lowest block is tried at every block. Above it, the choice is a knapsack problem, which is solved exactly unless
    the widths have so small a common divisor that they must be rounded up. Elements that add nothing to the sum are
    turned on in the order of `order` if they fit. Of equal sums, that with the highest lowest block is chosen.

    Args:
        order: the candidates, best first, ties in random order.
        always: elements that are on anyway.
    """
    import numpy as np

    least = min(0.0, *(item.score for item in order))
    worth = [item.score - least for item in order]
    worth = worth if any(worth) else [1.0] * len(order)  # all scores are 0: as many elements as possible
    unit = _unit([_width(item.element) for item in order])
    sizes = [-(-_width(item.element) // unit) for item in order]
    down_to = min((element.after(time.blocks) for element in always), default=time.blocks)
    taken = time.width * sum(map(_width, always))

    def room(lowest: int) -> int:
        """Units of width that are left if the backward pass ends at block `lowest`; below 0: it takes too long."""
        left = seconds * (1 + _ROUNDING) - time.fixed(min(lowest, down_to)) - taken
        if left < 0:
            return -1
        return math.floor(min(left / (time.width * unit), sum(sizes))) if time.width else sum(sizes)

    best = np.zeros(sum(sizes) + 1)  # the largest sum of scores of the candidates so far, by units
    steps = []  # (candidate, by units: whether it is in the best choice)
    top, until, lowest = 0.0, 0, time.blocks
    starts = [item.element.after(time.blocks) for item in order]
    for layer in sorted({*starts}, reverse=True):
        for index in (index for index, start in enumerate(starts) if start == layer):
            size = sizes[index]
            more = best[:-size] + worth[index]
            better = np.concatenate([np.zeros(size, bool), more > best[size:]])
            best[size:] = np.where(better[size:], more, best[size:])
            steps.append((index, better))
        if room(layer) >= 0 and best[room(layer)] > top:
            top, until, lowest = best[room(layer)], len(steps), layer
    left, chosen = room(lowest), set()
    for index, better in reversed(steps[:until]):
        if better[left]:
            chosen.add(index)
            left -= sizes[index]
    used = sum(sizes[index] for index in chosen)
    for index, start in enumerate(starts):
        down = min(lowest, start)
        if index not in chosen and used + sizes[index] <= room(down):
            chosen.add(index)
            used, lowest = used + sizes[index], down
    return frozenset(order[index].element.key for index in chosen)


def _width(element: Element) -> int:
    return element.width


def _unit(widths: Sequence[int]) -> int:
    return max(math.gcd(*widths), -(-sum(widths) // _UNITS)) if widths else 1
