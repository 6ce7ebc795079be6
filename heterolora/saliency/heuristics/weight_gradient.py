"""mean |W ∘ G|, W (out, in) the frozen weight and G = ∂L/∂W its gradient (GoRA: He et al. 2025, arXiv:2502.12171).

A shortcut has no frozen weight: its W is 0, and so is its score.
"""

from __future__ import annotations

from typing import cast

from torch import nn

from heterolora.elements.element import Element
from heterolora.elements.experts import LoraExperts
from heterolora.elements.low_rank import LoraLinear
from heterolora.saliency import register
from heterolora.saliency.base_weight import base_weight
from heterolora.saliency.problem import Problem
from heterolora.saliency.weight_gradients import ProductSum, weight_gradients


@register(
    "weight_gradient",
    needs_base_weights=True,
    scores_outside=("lm_head",),
    ignores=("metric", "cut"),
    remark="weight_gradient scores shortcuts 0, because they have no pretrained weight",
)
def weight_gradient(problem: Problem) -> list[float]:
    gradients = weight_gradients(problem)
    pairs = zip(problem.space.elements, gradients, strict=True)
    return [_score(problem.network, element, G) for element, (G,) in pairs]


def _score(network: nn.Module, element: Element, G: ProductSum) -> float:
    if element.kind == "shortcut":
        return 0.0
    host = cast("LoraLinear | LoraExperts", network.get_submodule(element.host))
    if isinstance(host, LoraExperts):
        W = host.weight_of(element.weight.rpartition(".")[2]).flatten(0, 1)
    else:
        W = base_weight(host.base, "weight_gradient")
    return float((W.float() * G.matrix()).abs().mean())
