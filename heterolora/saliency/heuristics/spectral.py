"""Σ_k σ_k(G₁) · max(u_kᵀ G₂ v_k, 0) / (in + out) over the ranks k = 1 … r of an element.

G₁ and G₂ (out, in) are the gradients of the weight at its place over the even and the odd batches. σ_k, u_k (out,) and
v_k (in,) are the leading singular triplets of G₁. Rank k can move the weight along u_k v_kᵀ. σ_k is the slope of the
loss in this direction on the batches that it was chosen by, where noise also has a slope. u_kᵀ G₂ v_k is the slope on
the other batches, where the slope of noise is 0 on average. The term of rank k is the score of that rank. Experts each
have their own triplets, and the terms of all experts are added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from heterolora.common.distributed import sum_numbers_over_ranks
from heterolora.common.errors import UserError
from heterolora.elements.element import Element
from heterolora.saliency import register
from heterolora.saliency.problem import Problem
from heterolora.saliency.weight_gradients import ProductSum, leading_directions, weight_gradients


@register("spectral", scores_outside=("lm_head",), ignores=("metric",))
def spectral(problem: Problem) -> list[list[float]]:
    (batches,) = sum_numbers_over_ranks((len(problem.batches),), problem.space.device)
    if batches < 2:
        raise UserError(f"spectral compares two halves of the batches and has {batches:g}", "give 2 batches or more")
    halves = weight_gradients(problem, parts=2)
    return [_by_rank(element, *each) for element, each in zip(problem.space.elements, halves, strict=True)]


def _by_rank(element: Element, first: ProductSum, second: ProductSum) -> list[float]:
    of_expert = (element.experts, element.out_features, element.in_features)
    halves = zip(first.matrix().view(of_expert), second.matrix().view(of_expert), strict=True)
    terms = [_slopes(element.rank, *each) for each in halves]
    return (torch.stack(terms).sum(0) / element.width).tolist()


def _slopes(rank: int, first: Tensor, second: Tensor) -> Tensor:
    """σ_k max(u_kᵀ G₂ v_k, 0) of each rank k, from G₁ and G₂ (out, in)."""
    U, S, V = leading_directions(first, rank)
    along = ((U.t() @ second) * V.t()).sum(1)  # u_kᵀ G₂ v_k
    return S * along.clamp(min=0)
