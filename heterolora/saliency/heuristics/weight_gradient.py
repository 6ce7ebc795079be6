"""mean |W ∘ G|, W (out, in) the frozen weight and G = ∂L/∂W its gradient (GoRA: He et al. 2025, arXiv:2502.12171).

A shortcut has no frozen weight: its W is 0, and so is its score.
"""

from __future__ import annotations

from torch import nn

from heterolora.elements.element import Element
from heterolora.elements.experts import LoraExperts
from heterolora.elements.inside import bases_of
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
    places = zip(problem.space.elements, bases_of(problem.network, problem.space), gradients, strict=True)
    return [0.0 if base is None else _score(element, base, G) for element, base, (G,) in places]


def _score(element: Element, base: nn.Module, G: ProductSum) -> float:
    if isinstance(base, LoraExperts):
        W = base.weight_of(element.weight.rpartition(".")[2]).flatten(0, 1)
    else:
        W = base_weight(base, "weight_gradient")
    return float((W.float() * G.matrix()).abs().mean())
