"""Differences between arms, with intervals over seeds and rows. Pure functions of NumPy arrays.

All arms of a seed see the same data order, and all are measured on the same rows, so their differences are paired.
Seeds and rows are crossed random factors, with one value of each seed on each row:

    value = mean + part of the seed + part of the row + part of the seed on the row

The mean squares of a two-way analysis of variance estimate the variance of the mean of S seeds and R rows:

    S · R · variance = MS(seeds) + max(MS(rows) − MS(both), 0)

(Hillis 2007, "A comparison of denominator degrees of freedom methods for multiple observer ROC analysis", Statistics in
Medicine 26(3)). An interval multiplies each of the two parts by the square of its own Student quantile, with S − 1 and
R − 1 degrees of freedom (Banerjee 1960, "Approximate confidence interval for linear functions of means of k populations
when the population variances are not equal", Sankhyā 22). For independent normal parts it contains the mean at least as
often as it claims, whatever their variances are. The first part is not below MS(both), which it contains, so that seeds
which agree by chance do not make an interval narrow. benchmarks/interval_coverage.py measures the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import chi2
from scipy.stats import t as student

MOST_SEEDS = 1000  # of an estimate of the seeds needed
_SMALLEST_P = 1e-12

Figures = NDArray[np.float64]


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
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float


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


@dataclass(frozen=True)
class MeanSquares:
    """The two-way analysis of variance of one or more means: all figures have the shape (...).

    With one seed only the rows vary, and `of_seeds` and `of_both` are 0; with one row only the seeds.
    """

    estimate: Figures
    of_seeds: Figures
    of_rows: Figures
    of_both: Figures
    seeds: int
    rows: int

    @classmethod
    def of(cls, totals: Figures, counts: Figures) -> MeanSquares:
        """Of the mean of `totals` (..., seeds, rows) per `counts` (..., rows).

        The mean is a ratio of two sums, so the values are its linearised deviations (Cochran 1977, "Sampling
        Techniques", section 2.11). Their mean over seeds and rows is 0.
        """
        seeds, rows = totals.shape[-2:]
        every = counts.sum(-1)
        estimate = totals.mean(-2).sum(-1) / every
        deviations = totals - counts[..., None, :] * estimate[..., None, None]
        deviations = deviations * (rows / every)[..., None, None]
        by_seed, by_row = deviations.mean(-1), deviations.mean(-2)
        both = deviations - by_seed[..., :, None] - by_row[..., None, :]
        return cls(
            estimate,
            rows * (by_seed**2).sum(-1) / max(1, seeds - 1),
            seeds * (by_row**2).sum(-1) / max(1, rows - 1),
            (both**2).sum((-2, -1)) / max(1, (seeds - 1) * (rows - 1)),
            seeds,
            rows,
        )

    def half_width(self, alpha: float | Figures) -> Figures:
        """Of the interval at the level 1 − `alpha`. One value says nothing about others: then it is infinite."""
        if self.seeds == self.rows == 1:
            return np.full_like(self.estimate, np.inf)
        of_seeds, of_rows = (_squared_quantile(alpha, size) for size in (self.seeds, self.rows))
        both = of_rows * self.of_both
        squared = np.maximum(of_seeds * self.of_seeds, both) + np.maximum(of_rows * self.of_rows - both, 0.0)
        return np.sqrt(squared / (self.seeds * self.rows))

    def interval(self, alpha: float) -> Interval:
        """Of one mean, at the level 1 − `alpha`."""
        estimate, half = float(self.estimate), float(self.half_width(alpha))
        return Interval(estimate, estimate - half, estimate + half)

    def p_value(self, distance: float) -> float:
        """The smallest `alpha` whose interval of one mean ends before a value in this distance from the estimate: the
        test that fits the intervals.
        """
        if distance == 0 or self.seeds == self.rows == 1:
            return 1.0

        def beyond(log_alpha: float) -> float:
            return float(self.half_width(math.exp(log_alpha))) - distance

        smallest = math.log(_SMALLEST_P)
        return _SMALLEST_P if beyond(smallest) <= 0 else math.exp(brentq(beyond, smallest, 0.0))


def _squared_quantile(alpha: float | Figures, size: int) -> Figures:
    return student.isf(np.asarray(alpha) / 2, max(1, size - 1)) ** 2


def interval(totals: Figures, counts: Figures, confidence: float) -> Interval:
    """The mean of one arm, or of a difference, with its interval."""
    return MeanSquares.of(totals, counts).interval(1 - confidence)


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
    of_rows = _squared_quantile(alpha, squares.rows) * max(0.0, float(squares.of_rows) - both)
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
