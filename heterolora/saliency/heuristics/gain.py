"""Predicted decrease of the loss by an element until the next choice, per parameter: one unit for elements on and off.

An element adds D x with D = s B A (out, in), A (r, in) and B (out, r). ℓ_b is the mean loss of batch b over its m
examples, g_b = ∂ℓ_b/∂B (out, r), and a bar is the mean over the n batches. The score is (keep + grow) / r (in + out).

keep, the increase of the loss if D were taken away, to second order. Since ∂ℓ_b/∂B = s (∂ℓ_b/∂W) Aᵀ, the slope of ℓ_b
along D follows from the gradient of B::

    d_b = ⟨∂ℓ_b/∂W, D⟩ = ⟨g_b, B⟩
    L(without D) - L(with D) ≈ -d̄ + h / 2        with the curvature h of the loss along D

For a loss that is a negative log-likelihood, h is the Fisher information: the mean square of the slopes of single
examples. It follows from the batches, because the variance of a mean over m examples is a m-th of theirs::

    h ≈ d̄² + m · var_b(d_b)

grow, the decrease of the loss while the optimizer moves B by -λ m, to first order. λ is the sum of the learning rates
of its steps. For Adam, m = ḡ / √(mean g²) entry by entry, and for SGD, m = ḡ. The part of the move along B is left out,
because it only scales D, which keep covers::

    grow = λ (⟨ḡ, m⟩ - ⟨ḡ, B⟩ ⟨m, B⟩ / ⟨B, B⟩)

The variance of ḡ is subtracted from the ḡ² in the first product, so that noise adds nothing on average. A has no part
in grow: its gradient s Bᵀ ∂ℓ/∂W grows with B, and so elements would be chosen because they had been on. For a new
element, B = 0, keep is 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heterolora.common.distributed import sum_each_over_ranks, sum_numbers_over_ranks
from heterolora.saliency import register
from heterolora.saliency.halves import SummedHeuristic
from heterolora.saliency.problem import Movement, Problem


@register("gain", ignores=("metric",))
class Gain(SummedHeuristic):
    """(keep + grow) / parameters of each element, not below 0, from one forward and backward pass per batch."""

    def sums(self, problem: Problem) -> list[Tensor]:
        every_B = [low_rank.B for low_rank in problem.space]
        moments = [B.new_zeros(2, *B.shape) for B in every_B]  # Σ g and Σ g²
        slopes = [B.new_zeros(2) for B in every_B]  # Σ d and Σ d²
        number = every_B[0].new_zeros(2)  # of batches and examples
        sums = [number, *moments, *slopes]
        for batch, counts in problem.passes("scoring batches", sums):
            loss = problem.evaluate(batch)
            found = problem.gradients(loss.mean, every_B)
            if not counts:
                continue
            for B, g, moment, slope in zip(every_B, found, moments, slopes, strict=True):
                d = (g * B.detach()).sum()
                moment += torch.stack([g, g.square()])
                slope += torch.stack([d, d.square()])
            number += torch.stack([torch.ones_like(loss.count), loss.count])
        return sums

    def of_sums(self, problem: Problem, sums: Sequence[Tensor]) -> list[float]:
        number, *others = sums
        n, examples = sum_numbers_over_ranks(number.tolist(), problem.space.device)
        moments, slopes = map(sum_each_over_ranks, (others[: len(problem.space)], others[len(problem.space) :]))
        scores = []
        for low_rank, moment, slope in zip(problem.space, moments, slopes, strict=True):
            (g, g_square), (d, d_square) = moment / n, (slope / n).tolist()
            total = keep(d, d_square, n, examples / n) + grow(low_rank.B.detach(), g, g_square, n, problem.movement)
            scores.append(max(total, 0.0) / low_rank.element.parameters)
        return scores


def keep(d: float, square: float, n: float, m: float) -> float:
    """The increase of the loss without D, from the means of d_b and d_b² over n batches of m examples."""
    variance = max(square - d**2, 0.0) * n / max(n - 1, 1)
    return -d + (d**2 + m * variance) / 2


def grow(B: Tensor, g: Tensor, square: Tensor, n: float, movement: Movement) -> float:
    """The decrease of the loss while B (out, r) moves, from the means of g_b and g_b² over n batches."""
    tiny = torch.finfo(B.dtype).tiny
    unit = square.sqrt().clamp(min=tiny) if movement.adaptive else torch.ones_like(square)  # (out, r)
    move, variance = g / unit, (square - g.square()) / max(n - 1, 1)
    along = (g * B).sum() * (move * B).sum() / B.square().sum().clamp(min=tiny)
    return movement.length * max(float((g * move - variance / unit).sum() - along), 0.0)
