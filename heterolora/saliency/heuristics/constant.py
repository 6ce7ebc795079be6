"""1 for every element: what is chosen then is drawn. The baseline that a heuristic has to beat."""

from __future__ import annotations

from heterolora.saliency import register
from heterolora.saliency.problem import Problem


@register("constant")
def constant(problem: Problem) -> list[float]:
    return [1.0] * len(problem.space)
