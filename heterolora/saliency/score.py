"""One call from a problem to scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from torch import Tensor

from heterolora.choosing.allocation import Scored
from heterolora.common.errors import NotFiniteError, UserError, shown
from heterolora.elements.element import Element
from heterolora.saliency import get
from heterolora.saliency.halves import with_halves
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.problem import Problem
from heterolora.saliency.warm_up import WarmUp, warmed_up

FEWEST_FOR_HALVES = 4  # batches of a process, because some heuristics need two in each half


def scored(name: str, problem: Problem, warm_up: WarmUp | None = None, halves: bool = False) -> tuple[Scored, ...]:
    """Score every element of `problem.space` by the heuristic `name`. The network is unchanged afterwards.

    With `halves`, also from two halves of the batches, for which every process must have `FEWEST_FOR_HALVES`.

    Every process must call it with its own share of the batches. All processes get the same scores.

    Returns:
        the elements with their scores, in the order of the search space.

    Raises:
        UserError: the name is not known, the heuristic cannot score experts, or a score is NaN or infinite.
    """
    get(name).check(problem.space.elements)
    with no_trace(problem.network, problem.space), warmed_up(problem, warm_up or WarmUp()):
        items = _items(name, problem, halves)
        if not all(math.isfinite(score) for item in items for score in (item.score, *item.halves)):
            items = _items(name, problem.unscaled(), halves)
    for item in items:
        if not all(map(math.isfinite, (item.score, *item.halves))):
            found = f"the {name} score of {item.element.key} is {item.score}"
            raise NotFiniteError(found, "expected a finite score; check the loss and the precision")
    return items


def _items(name: str, problem: Problem, halves: bool) -> tuple[Scored, ...]:
    score, elements = get(name).score, problem.space.elements
    parts = with_halves(score, problem) if halves else (score(problem),)
    whole, *half = [
        [_scored(element, _numbers(name, element, value)) for element, value in zip(elements, values, strict=True)]
        for values in parts
    ]
    return tuple(
        replace(item, halves=tuple(each.score for each in of_halves))
        for item, *of_halves in zip(whole, *half, strict=True)
    )


def _numbers(name: str, element: Element, value: Any) -> Any:
    """A score, or those of the ranks, as plain numbers. Raises UserError if a heuristic returns anything else."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if not all(isinstance(number, Real) for number in (value if isinstance(value, list | tuple) else [value])):
        raise UserError(f"the {name} score of {element.key} is {shown(value)}", "expected a number")
    return value


def score(name: str, problem: Problem, warm_up: WarmUp | None = None) -> dict[str, float]:
    """`scored` as a dictionary: key of an element (`layer_<i>.<name>`) -> score, in the order of the search space."""
    return {item.element.key: item.score for item in scored(name, problem, warm_up)}


def _scored(element: Element, value: float | Sequence[float]) -> Scored:
    if not isinstance(value, Sequence):
        return Scored(element, value)
    by_rank = tuple(sorted(value, reverse=True))
    return Scored(element, sum(by_rank), by_rank)


def why_all_equal(name: str, scores: Mapping[str, float]) -> str | None:
    """A warning if all scores are equal, so that the choice is random; None if they differ."""
    heuristic = get(name)
    if heuristic.is_baseline or len(scores) < 2 or len(set(scores.values())) > 1:
        return None
    value = next(iter(scores.values()))
    hint = f", or {heuristic.hint}" if value == 0 and heuristic.hint else ""
    if value == 0 and heuristic.warmup_batches > 0:
        return (
            f"all {name} scores are 0, so the choice is random: while B = 0 an element has no effect; train the "
            f"elements first, on more warm-up batches or at a higher warm-up learning rate{hint}"
        )
    cure = f"use more scoring batches, or another heuristic{hint}"
    return f"all {name} scores are {value:g}, so the choice is random; {cure}"
