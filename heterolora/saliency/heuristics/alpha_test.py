"""The α at which an element alone becomes dispensable: the metric holds though its delta counts only α times.

If it holds at α = 0 the score is 0; else it is the smallest of 0.1, 0.2, …, 1.0 that bisection finds (1.0 always holds:
nothing is changed). The plain way evaluates the whole network on all batches for every question. Here, with the same
answers, an evaluation starts at the block that the element is in and ends when the verdict is certain, the batches that
are likely to decide it first; and most elements need one question, α = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from heterolora.distributed import sum_numbers_over_ranks, world_size
from heterolora.saliency import register
from heterolora.saliency.problem import Problem
from heterolora.saliency.restart import Restarts
from heterolora.saliency.verdict import Evaluated, judge
from heterolora.search_space import Element

STEPS = 10  # between α = 0 and α = 1


@register("alpha_test", warmup_batches=32)
@torch.no_grad()
def alpha_test(problem: Problem) -> list[float]:
    walk = Walk(problem)
    return [walk.score(element) for element in problem.track(problem.space.elements, "elements")]


class Walk:
    """Asks about one element after the other, from the first block to the last.

    Every process makes one and asks it the same; its batches are its share.
    """

    def __init__(self, problem: Problem) -> None:
        device = problem.device
        mine = len(problem.batches)
        (everywhere,) = sum_numbers_over_ranks((mine,), device)
        self.rounds = math.ceil(everywhere / world_size())
        self.problem, self.restarts = problem, Restarts(problem)
        self.judge = judge(problem.metric, device)
        self.order = list(range(mine))
        doubts: list[float] = []
        self.judge.first(self._first_rounds(doubts))
        self.order.sort(key=lambda batch: -doubts[batch])

    def score(self, element: Element) -> float:
        """α; the elements come by block."""
        if self._holds(element, 0):
            return 0.0
        low, high = 1, STEPS
        while low < high:
            middle = (low + high) // 2
            if self._holds(element, middle):
                high = middle
            else:
                low = middle + 1
        return high / STEPS

    def _holds(self, element: Element, step: int) -> bool:
        element.low_rank.importance = step / STEPS
        try:
            return self.judge.holds(self._rounds(element.layer))
        finally:
            element.low_rank.importance = 1.0

    def _rounds(self, layer: int) -> Iterator[Evaluated | None]:
        for batch in self.order:
            yield self.problem.batches[batch], self.restarts.evaluate(batch, layer)
        yield from [None] * (self.rounds - len(self.order))

    def _first_rounds(self, doubts: list[float]) -> Iterator[Evaluated | None]:
        for evaluated in self._rounds(layer=0):
            if evaluated is not None:
                doubts.append(self.judge.doubt(*evaluated))
            yield evaluated
