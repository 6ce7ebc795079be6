"""Differences between arms of a study, with intervals over seeds and rows, and what more seeds would show.

Pure functions of NumPy arrays. All arms of a seed see the same data order, and all are measured on the same rows, so
their differences are paired. `model.mean_squares` has the intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2
from scipy.stats import t as student

from model.mean_squares import Figures, Interval, MeanSquares, squared_quantile

MOST_SEEDS = 1000  # of an estimate of the seeds needed


@dataclass(frozen=True)
class Rows:
    """The results of one arm.

    Attributes:
        totals: (seeds, rows) the measure of each row, summed over what the row counts.
        counts: (rows,) how many that are: 1 for an accuracy, target tokens for the loss of a language model.
    """

    totals: Figures
    counts: Figures


@dataclass(frozen=True)
class SeedsNeeded:
    """The range of the number of seeds that a study needs. `high` is None above `MOST_SEEDS`."""

    low: int
    high: int | None


@dataclass(frozen=True)
class Difference:
    """An arm against the baseline.

    Attributes:
        interval: arm − baseline, oriented so that a positive value means that the arm is better.
        corrected: the p value of all arms together, of `differences` or of `step_down`.
        simultaneous: the interval for all arms together.
        seeds_needed: seeds for which `simultaneous` would decide; None if the rows alone make it wider, or if the
            difference as estimated decides already; see `seeds_needed`.
    """

    interval: Interval
    corrected: float
    simultaneous: Interval
    seeds_needed: SeedsNeeded | None


def differences(
    arms: Mapping[str, Rows], baseline: str, higher_is_better: bool, confidence: float, resolve: float
) -> dict[str, Difference]:
    """Whether every other arm differs from the baseline. All arms have the same seeds and rows.

    The p values are two-sided, after Holm's correction for the number of arms. `simultaneous` is the interval at the
    level that Bonferroni's correction demands. The seeds needed would show the difference as estimated, or show that it
    is below `resolve`.
    """
    alpha = 1 - confidence
    found = _apart(arms, baseline, higher_is_better)
    corrected = holm({name: squares.p_value(abs(float(squares.estimate))) for name, squares in found.items()})
    each = alpha / max(1, len(found))
    return {
        name: Difference(
            squares.interval(alpha),
            corrected[name],
            squares.interval(each),
            seeds_needed(squares, each, _width_that_decides(float(squares.estimate), resolve)),
        )
        for name, squares in found.items()
    }


def _apart(arms: Mapping[str, Rows], baseline: str, higher_is_better: bool) -> dict[str, MeanSquares]:
    """Every other arm − the baseline. A positive value means that the arm is better."""
    base, sign = arms[baseline], 1.0 if higher_is_better else -1.0
    others = {name: arm for name, arm in arms.items() if name != baseline}
    return {name: MeanSquares.of(sign * (arm.totals - base.totals), base.counts) for name, arm in others.items()}


def step_down(
    arms: Mapping[str, Rows], baseline: str, higher_is_better: bool, confidence: float, resolve: float
) -> dict[str, Difference]:
    """Whether the arms are not worse than the baseline by `resolve`, in their order, until one is not shown to be.

    A hypothesis is tested only if all before it were rejected, so no level needs a correction, and the interval of the
    first arm that is not shown holds too (Hsu & Berger 1999, "Stepwise confidence intervals without multiplicity
    adjustment for dose-response and toxicity studies", Journal of the American Statistical Association 94). An arm is
    not worse if its whole interval is above −`resolve`: the p value, the largest of those so far, belongs to that.
    """
    alpha, largest, found = 1 - confidence, 0.0, {}
    for name, squares in _apart(arms, baseline, higher_is_better).items():
        room = float(squares.estimate) + resolve
        largest = max(largest, squares.p_value(room) if room > 0 else 1.0)
        needed = seeds_needed(squares, alpha, room) if room > 0 else None
        found[name] = Difference(squares.interval(alpha), largest, squares.interval(alpha), needed)
    return found


def _width_that_decides(estimate: float, resolve: float) -> float:
    """With the difference as estimated, so narrow an interval shows it, or lies between −resolve and resolve."""
    return max(abs(estimate), resolve - abs(estimate))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (Holm 1979, Scandinavian Journal of Statistics 6(2))."""
    corrected, largest = {}, 0.0
    for position, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def seeds_needed(squares: MeanSquares, alpha: float, width: float) -> SeedsNeeded | None:
    """The number of seeds S for which the interval of one mean has at most `width` on each side.

    That is t² · v / S + (part of the rows) ≤ `width`², where v is the variance of a seed's mean over the rows. A few
    seeds measure v only roughly, so the result is a range, from the 95% interval of v by the χ² distribution. More
    seeds do not make the part of the rows smaller: None if it alone is too large. None with one seed or one row, which
    say nothing about others.
    """
    if min(squares.seeds, squares.rows) < 2:
        return None
    both, of_seeds = float(squares.of_both), float(squares.of_seeds)
    of_rows = squared_quantile(alpha, squares.rows) * max(0.0, float(squares.of_rows) - both)
    room = width**2 - of_rows / (squares.seeds * squares.rows)
    if room <= 0:
        return None
    free = squares.seeds - 1
    low, high = (max(both, of_seeds * free / chi2.ppf(share, free)) / squares.rows for share in (0.975, 0.025))
    return SeedsNeeded(_smallest(alpha, low / room) or MOST_SEEDS, _smallest(alpha, high / room))


def _smallest(alpha: float, ratio: float) -> int | None:
    """The smallest number of seeds S with t² · `ratio` ≤ S, or None above `MOST_SEEDS`."""
    sizes = np.arange(2, MOST_SEEDS + 1)
    enough = student.isf(alpha / 2, sizes - 1) ** 2 * ratio <= sizes
    return int(sizes[enough.argmax()]) if enough.any() else None
