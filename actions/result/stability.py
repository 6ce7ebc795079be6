"""How much the scores depend on the scoring batches: scores of two halves of them, and their rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from scipy.stats import spearmanr

from heterolora.choosing.allocation import Scored
from heterolora.saliency.problem import Problem
from heterolora.saliency.score import scored
from heterolora.saliency.warm_up import WarmUp

FEWEST = 4  # batches of a process, because some heuristics need two in each half
UNSTABLE = 0.7  # a lower correlation gets a warning


def with_halves(name: str, items: Sequence[Scored], problem: Problem, warm_up: WarmUp) -> tuple[Scored, ...]:
    """The same items, each with its scores from every second batch and from the others.

    Every process must have `FEWEST` batches, and call it.
    """
    halves = (scored(name, _half(problem, start), warm_up) for start in (0, 1))
    return tuple(replace(item, halves=(a.score, b.score)) for item, a, b in zip(items, *halves, strict=True))


def _half(problem: Problem, start: int) -> Problem:
    """Every second batch. Fillers are counted too, so that all processes run as many passes."""
    real, every = len(problem.batches), (*problem.batches, *problem.fillers)
    places = range(start, len(every), 2)
    batches = [every[place] for place in places if place < real]
    return replace(problem, batches=batches, fillers=[every[place] for place in places if place >= real])


def rank_correlation(items: Sequence[Scored]) -> float | None:
    """Spearman's correlation of the two halves. None if there are no halves, or all scores of one are equal."""
    if len(items) < 2 or not all(item.halves for item in items):
        return None
    first, second = zip(*(item.halves for item in items), strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(spearmanr(first, second).statistic)


def agreement_in_words(correlation: float) -> str:
    """A line for the user."""
    text = f"stability: the scores of two halves of the batches have rank correlation {correlation:.2f}"
    return f"{text}; more --imp-limit-test-batches would make the choice firmer" if correlation < UNSTABLE else text
