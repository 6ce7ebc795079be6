"""mean |W ∘ G|, W (out, in) the frozen weight and G = ∂L/∂W its gradient (GoRA: He et al. 2025, arXiv:2502.12171).

A shortcut has no frozen weight: its W is 0, and so is its score.
"""

from __future__ import annotations

from torch import nn

from heterolora.elements.element import Element
from heterolora.saliency import register
from heterolora.saliency.base_weight import base_weight
from heterolora.saliency.problem import Problem
from heterolora.saliency.weight_gradients import ProductSum, weight_gradients


@register(
    "weight_gradient",
    needs_base_weights=True,
    ignores=("metric", "cut"),
    remark="weight_gradient scores shortcuts 0, because they have no pretrained weight",
)
def weight_gradient(problem: Problem) -> list[float]:
    gradients = weight_gradients(problem)
    return [_score(problem.network, *each) for each in zip(problem.space.elements, gradients, strict=True)]


def _score(network: nn.Module, element: Element, gradient: tuple[ProductSum]) -> float:
    if element.kind == "shortcut":
        return 0.0
    W = base_weight(network.get_submodule(element.module).base, "weight_gradient")
    return float((W.float() * gradient[0].matrix()).abs().mean())
