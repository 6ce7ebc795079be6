"""1 for every element, so that the choice is random. This is the baseline for the other heuristics."""

from __future__ import annotations

from heterolora.saliency import register
from heterolora.saliency.problem import Problem


@register("constant", is_baseline=True, ignores=("batches", "metric"))
def constant(problem: Problem) -> list[float]:
    return [1.0] * len(problem.space)
