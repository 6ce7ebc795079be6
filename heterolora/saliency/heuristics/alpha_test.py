"""The α at which an element alone becomes dispensable: the metric holds although its delta counts only α times.

If the metric holds at α = 0, the score is 0. Otherwise the score is the smallest of 0.1, 0.2, …, 1.0 that bisection
finds; 1.0 always holds, because nothing changes. The plain method evaluates the whole network on all batches for every
question. This implementation gives the same answers faster: an evaluation starts at the element's block and ends as
soon as the verdict is certain, batches that probably decide it come first, and most elements need only α = 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from heterolora.common.distributed import gather_lists
from heterolora.elements.low_rank import LowRank
from heterolora.saliency import register
from heterolora.saliency.problem import Problem
from heterolora.saliency.restart import Restarts
from heterolora.saliency.verdict import Evaluated, judge

STEPS = 10  # between α = 0 and α = 1


@register("alpha_test", warmup_batches=32, hint="use a lower tolerance of the metric", ignores=("cut",))
@torch.no_grad()
def alpha_test(problem: Problem) -> list[float]:
    walk = Walk(problem)
    return [walk.score(low_rank) for low_rank in problem.track(problem.space.low_ranks, "elements")]


class Walk:
    """Tests one element after another, from the first block to the last.

    Every process makes one and asks the same questions, each on its own share of the batches.
    """

    def __init__(self, problem: Problem) -> None:
        mine = len(problem.batches)
        self.rounds = max(gather_lists([mine]))
        self.problem, self.restarts = problem, Restarts(problem)
        self.judge = judge(problem.metric, problem.space.device)
        self.order = list(range(mine))
        doubts: list[float] = []
        self.judge.first(self._first_rounds(doubts))
        self.order.sort(key=lambda batch: -doubts[batch])

    def score(self, low_rank: LowRank) -> float:
        """The α of one element. Elements must come in the order of their blocks."""
        if self._holds(low_rank, 0):
            return 0.0
        low, high = 1, STEPS
        while low < high:
            middle = (low + high) // 2
            if self._holds(low_rank, middle):
                high = middle
            else:
                low = middle + 1
        return high / STEPS

    def _holds(self, low_rank: LowRank, step: int) -> bool:
        low_rank.importance = step / STEPS
        try:
            return self.judge.holds(self._rounds(low_rank.element.after(len(self.problem.space.blocks))))
        finally:
            low_rank.importance = 1.0

    def _rounds(self, layer: int) -> Iterator[Evaluated | None]:
        for batch in self.order:
            yield self.problem.batches[batch], self.restarts.evaluate(batch, layer)
        for filler in range(len(self.order), self.rounds):
            if self.problem.fillers:
                self.restarts.evaluate(filler, layer)
            yield None

    def _first_rounds(self, doubts: list[float]) -> Iterator[Evaluated | None]:
        for evaluated in self._rounds(layer=0):
            if evaluated is not None:
                doubts.append(self.judge.doubt(*evaluated))
            yield evaluated
