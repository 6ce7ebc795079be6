"""The heuristics that are a formula in weights and gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from heterolora.distributed import sum_over_ranks
from heterolora.saliency.problem import Problem
from heterolora.search_space import Element


class GradientHeuristic(ABC):
    """An element's score is `measure(A, Σ of_batch(∂ℓ/∂A)) + measure(B, Σ of_batch(∂ℓ/∂B))`, summed over batches.

    ℓ is the loss of one batch. One forward and one backward pass a batch serve all elements.
    """

    def of_batch(self, gradient: Tensor) -> Tensor:
        """What is summed over batches, entry by entry; the gradient itself makes the sum ∂L/∂A."""
        return gradient

    @abstractmethod
    def measure(self, weight: Tensor, total: Tensor) -> Tensor:
        """A's (or B's) part of the score, a scalar, from its values and the sum over batches, which has its shape."""

    def __call__(self, problem: Problem) -> list[float]:
        parameters = trained_parameters(problem.space.elements)
        totals = [torch.zeros_like(parameter) for parameter in parameters]
        for batch in problem.track(problem.batches, "scoring batches"):
            gradients = torch.autograd.grad(problem.evaluate(batch).loss, parameters, materialize_grads=True)
            for total, gradient in zip(totals, gradients, strict=True):
                total += self.of_batch(gradient)
        return self.scores(parameters, sum_each_over_ranks(totals))

    @torch.no_grad()
    def scores(self, parameters: Sequence[Tensor], totals: Sequence[Tensor]) -> list[float]:
        """One score an element.

        Args:
            parameters: A and B of each element in turn, see `trained_parameters`.
            totals: the sum over all batches, of all processes, of each one's `of_batch(gradient)`.
        """
        parts = [self.measure(weight, total) for weight, total in zip(parameters, totals, strict=True)]
        return torch.stack(parts).view(-1, 2).sum(1).tolist()


def trained_parameters(elements: Sequence[Element]) -> list[Tensor]:
    """A and B of the first element, of the second, …"""
    return [parameter for element in elements for parameter in (element.low_rank.A, element.low_rank.B)]


def sum_each_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over all processes, in one collective."""
    flat = sum_over_ranks(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    pieces = flat.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]
