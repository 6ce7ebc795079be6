"""Scores of two halves of the batches: of every second batch of each process, and of the others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from heterolora.saliency import Scorer
from heterolora.saliency.problem import Problem

Values = Sequence[float | Sequence[float]]  # one of each element


class SummedHeuristic(ABC):
    """A heuristic whose scores follow from sums over batches. The same passes give the sums of both halves."""

    @abstractmethod
    def sums(self, problem: Problem) -> list[Tensor]:
        """The sums over the batches of this process. They start as zeros and are given to `problem.passes`."""

    @abstractmethod
    def of_sums(self, problem: Problem, sums: Sequence[Tensor]) -> Values:
        """One score per element from the sums, which are added over all processes here."""

    def __call__(self, problem: Problem) -> Values:
        return self.of_sums(problem, self.sums(problem))


def with_halves(score: Scorer, problem: Problem) -> tuple[Values, Values, Values]:
    """The scores from all batches, from every second one, and from the others.

    A heuristic that is no `SummedHeuristic` scores each half in passes of its own.
    """
    if not isinstance(score, SummedHeuristic):
        return score(problem), score(_half(problem, 0)), score(_half(problem, 1))
    first = _FirstHalf()
    sums = score.sums(replace(problem, around=first.follow))
    whole, half = score.of_sums(problem, sums), score.of_sums(problem, first.sums)
    others = [total - part for total, part in zip(sums, first.sums, strict=True)]
    return whole, half, score.of_sums(problem, others)


class _FirstHalf:
    """What the batches 0, 2, 4, … add to sums: the difference of the sums after and before each of these batches."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []

    @contextmanager
    def follow(self, batch: int, sums: Sequence[Tensor]) -> Iterator[None]:
        """Wrap the pass of batch `batch`."""
        if batch % 2 == 0:
            self._add(sums, -1)
        yield
        if batch % 2 == 0:
            self._add(sums, 1)

    @torch.no_grad()
    def _add(self, sums: Sequence[Tensor], sign: int) -> None:
        self.sums = self.sums or [torch.zeros_like(total) for total in sums]
        for part, total in zip(self.sums, sums, strict=True):
            part.add_(total, alpha=sign)


def _half(problem: Problem, start: int) -> Problem:
    """Every second batch. Fillers are counted too, so that all processes run as many passes."""
    real, every = len(problem.batches), (*problem.batches, *problem.fillers)
    places = range(start, len(every), 2)
    batches = [every[place] for place in places if place < real]
    return replace(problem, batches=batches, fillers=[every[place] for place in places if place >= real])
