"""Heuristics that are a formula in weights and gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from heterolora.common.distributed import sum_each_over_ranks
from heterolora.saliency.halves import SummedHeuristic
from heterolora.saliency.problem import Problem


class GradientHeuristic(SummedHeuristic):
    """The score of an element is `measure(A, Σ of_batch(∂ℓ/∂A)) + measure(B, Σ of_batch(∂ℓ/∂B))`, summed over batches.

    ℓ is the loss of one batch. One forward and one backward pass per batch serve all elements.
    """

    def of_batch(self, gradient: Tensor) -> Tensor:
        """The tensor that is summed over batches, entry by entry. The gradient itself gives the sum ∂L/∂A."""
        return gradient

    @abstractmethod
    def measure(self, weight: Tensor, total: Tensor) -> Tensor:
        """A's (or B's) part of the score, a scalar, from its values and the sum over batches, of the same shape."""

    def sums(self, problem: Problem) -> list[Tensor]:
        parameters = problem.space.parameters
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for batch, counts in problem.passes("scoring batches", totals):
            found = problem.gradients(problem.evaluate(batch).mean, parameters)
            for total, gradient in zip(totals, found, strict=True) if counts else ():
                total += self.of_batch(gradient)
        return totals

    def of_sums(self, problem: Problem, sums: Sequence[Tensor]) -> list[float]:
        return self.scores(problem.space.parameters, sum_each_over_ranks(sums))

    @torch.no_grad()
    def scores(self, parameters: Sequence[Tensor], totals: Sequence[Tensor]) -> list[float]:
        """One score per element, from A and B of each element in turn, and for each of these parameters the sum of
        `of_batch(gradient)` over all batches of all processes.
        """
        parts = [self.measure(weight, total) for weight, total in zip(parameters, totals, strict=True)]
        parts = [part.to(parts[0].device) for part in parts]  # a model may be on several devices
        return torch.stack(parts).view(-1, 2).sum(1).tolist()
