"""‖G‖₂, G = ∂L/∂W (out, in) the gradient of the frozen weight at the element's place.

Unlike `grad_norm`, which sees G through A and B (∂L/∂B = s G Aᵀ), it depends neither on how A was drawn nor on whether
the element is trained: A and B enter only through what the network computes.
"""

from __future__ import annotations

from heterolora.saliency import register
from heterolora.saliency.problem import Problem
from heterolora.saliency.weight_gradients import weight_gradients


@register("weight_grad_norm", scores_outside=("lm_head",), ignores=("metric", "cut"))
def weight_grad_norm(problem: Problem) -> list[float]:
    return [G.norm() for (G,) in weight_gradients(problem)]
