"""Share of the input's variance in its r leading principal directions (EVA: Paischer et al. 2024, arXiv:2410.07170).

With x (tokens, in) the inputs of a place and μ their mean, the directions are the eigenvectors of the covariance
C = Σ (x - μ)ᵀ (x - μ) of shape (in, in), and the share of direction k is λ_k / trace C. Padding, where a batch's
`attention_mask` is 0, does not count, except in the decoder of an encoder-decoder model, where no mask is known. The
loss has no influence, so no backward pass is needed. The share of direction k is also the score of the element's k-th
rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heterolora.common.distributed import sum_over_ranks
from heterolora.elements.element import Element
from heterolora.saliency import register
from heterolora.saliency.problem import Problem
from heterolora.saliency.weight_gradients import PlaceWatch, ProductSum, leading_directions, observe, product_sums

#: Inputs with less variance than this part of their mean square are constant: float32 rounds as much.
CONSTANT = 1e-5


class Inputs(PlaceWatch):
    """The moments of one place's inputs: Σ xᵀ x (in, in), Σ x (in,), Σ ‖x‖² and the number of tokens."""

    def __init__(self, products: ProductSum, rank: int, sums: Tensor, masked: bool) -> None:
        self.products, self.rank, self.sums = products, rank, sums  # sums (in + 2,): Σ x, Σ ‖x‖², tokens
        self.masked = masked

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        mask = self.batch.get("attention_mask") if self.masked and isinstance(self.batch, Mapping) else None
        tokens = x.detach().reshape(-1, x.shape[-1])
        number = x.new_full((1,), len(tokens), dtype=torch.float32)
        if mask is not None and mask.numel() == len(tokens):
            seen = mask.to(x.device).flatten() > 0
            # A mask as an index would make the program wait for the GPU, at every place.
            tokens, number = tokens.masked_fill(~seen.unsqueeze(1), 0), seen.sum(dtype=torch.float32).view(1)
        self.add(tokens, number)
        return y

    def add(self, x: Tensor, number: Tensor) -> None:
        """x (tokens, in), with zeros for padding, and the number (1,) of the other tokens."""
        x = x.float()
        self.products.add(x, x)
        self.sums += torch.cat([x.sum(0), x.square().sum().view(1), number])

    def add_weight(self, G: Tensor) -> None:
        raise NotImplementedError("the inputs of experts are not observed")  # so `Heuristic.check` refuses them

    def reduce(self) -> None:
        self.products.reduce()
        self.sums = sum_over_ranks(self.sums)

    def directions(self) -> tuple[Tensor, Tensor]:
        """The `rank` leading principal directions (in, k) and their shares of the variance (k,), 0 without variance."""
        total, squares, tokens = self.sums[:-2], self.sums[-2], self.sums[-1].clamp(min=1)
        covariance = self.products.matrix() - total.outer(total) / tokens
        variance = squares - total.square().sum() / tokens
        _, values, directions = leading_directions(covariance, self.rank)
        varies = ~(variance <= CONSTANT * squares)  # also if it is NaN
        return directions, torch.where(varies, values / variance, 0.0)


def inputs(problem: Problem) -> list[Inputs]:
    """The inputs of each element's place, over the batches of all processes. `no_trace` must be active."""
    elements = problem.space.elements
    products = product_sums(problem, [(element.in_features,) * 2 for element in elements])
    places = [
        Inputs(each, element.rank, each.sums[0].new_zeros(element.in_features + 2), _masked(problem.network, element))
        for (each,), element in zip(products, elements, strict=True)
    ]
    observe(problem, places, backward=False)
    for place in places:
        place.reduce()
    return places


def _masked(network: nn.Module, element: Element) -> bool:
    """Whether the batch's mask is that of the element's tokens. It is that of an encoder, if there are two parts."""
    two_parts = getattr(getattr(network, "config", None), "is_encoder_decoder", False)
    return not (two_parts and "decoder" in element.module.split("."))


@register("activation", scores_experts=False, scores_outside=("lm_head",), ignores=("metric", "cut"))
def activation(problem: Problem) -> list[list[float]]:
    return [place.directions()[1].clamp(min=0).tolist() for place in inputs(problem)]
