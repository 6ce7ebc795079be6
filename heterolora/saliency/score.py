"""One call from a problem to scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

from heterolora.errors import NotFiniteError
from heterolora.saliency import get
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.problem import Problem
from heterolora.saliency.warm_up import WarmUp, warmed_up


def score(name: str, problem: Problem, warm_up: WarmUp | None = None) -> dict[str, float]:
    """Score every element of `problem.space` by the heuristic `name`. The network is unchanged afterwards.

    Every process must call it with its own share of the batches. All processes get the same scores.

    Returns:
        key of an element (`layer_<i>.<name>`) -> score, in the order of the search space.

    Raises:
        UserError: the name is not known, or a score is NaN or infinite.
    """
    heuristic = get(name)
    with no_trace(problem.network, problem.space), warmed_up(problem, warm_up or WarmUp()):
        values = heuristic.score(problem)
    scores = {element.key: value for element, value in zip(problem.space.elements, values, strict=True)}
    for key, value in scores.items():
        if not math.isfinite(value):
            found = f"the {name} score of {key} is {value}"
            raise NotFiniteError(found, "expected a finite score; check the loss and the precision")
    return scores


def why_all_equal(name: str, scores: Mapping[str, float]) -> str | None:
    """A warning if all scores are equal, so that the choice is random; None if they differ."""
    heuristic = get(name)
    if heuristic.is_baseline or len(scores) < 2 or len(set(scores.values())) > 1:
        return None
    value = next(iter(scores.values()))
    if value == 0:
        hint = f", or {heuristic.hint}" if heuristic.hint else ""
        return (
            f"all {name} scores are 0, so the choice is random: while B = 0 an element has no effect; train the "
            f"elements first, on more warm-up batches or at a higher warm-up learning rate{hint}"
        )
    return f"all {name} scores are {value:g}, so the choice is random; use more scoring batches, or another heuristic"
