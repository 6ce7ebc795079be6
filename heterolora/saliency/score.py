"""One call from a problem to scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

from heterolora.errors import UserError
from heterolora.saliency import get
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.problem import Problem
from heterolora.saliency.warm_up import WarmUp, warmed_up


def score(name: str, problem: Problem, warm_up: WarmUp | None = None) -> dict[str, float]:
    """Score every element of `problem.space` by the heuristic `name`; nothing is left changed, whatever happens.

    Every process has to call it, with its own share of the batches; all get the same scores.

    Args:
        name: one of `heterolora.saliency.names()`.
        problem: the network, its elements and the batches.
        warm_up: training that comes first and is undone; none where a B ≠ 0 shows that there was some.

    Returns:
        key of an element (`layer_<i>.<name>`) → score, in the order of the search space.

    Raises:
        UserError: the name is not known, or a score is NaN or infinite.
    """
    heuristic = get(name)
    with no_trace(problem.network, problem.space), warmed_up(problem, warm_up or WarmUp()):
        values = heuristic.score(problem)
    return finite(name, {element.key: value for element, value in zip(problem.space, values, strict=True)})


def finite(name: str, scores: dict[str, float]) -> dict[str, float]:
    """The scores as they are; `UserError` naming the element if one is NaN or infinite."""
    for key, value in scores.items():
        if not math.isfinite(value):
            raise UserError(
                f"the {name} score of {key} is {value}", "expected a finite one; look at the loss, and at --precision"
            )
    return scores


def why_all_equal(name: str, scores: Mapping[str, float]) -> str | None:
    """What to tell a user whose scores are all equal, so that a choice by them is a draw; None where they are not."""
    if name == "constant" or len(scores) < 2 or len(set(scores.values())) > 1:
        return None
    value = next(iter(scores.values()))
    if value == 0:
        finer = ", or ask for more by a lower --metric-red-tolerance" if name == "alpha_test" else ""
        return (
            f"all {name} scores are 0, so a choice by them is a draw: as long as B = 0 an element changes nothing; "
            f"train the elements first with --imp-warmup-batches (more of them, or a higher --imp-warmup-lr){finer}"
        )
    return (
        f"all {name} scores are {value:g}, so a choice by them is a draw; "
        "use more --imp-limit-test-batches, or another --importance-test-name"
    )
