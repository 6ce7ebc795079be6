"""The interval of a mean over crossed seeds and rows. Pure functions of NumPy arrays.

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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import t as student

_SMALLEST_P = 1e-12

Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval."""

    estimate: float
    low: float
    high: float

    def text(self, signed: bool = False) -> str:
        """Such as `0.4607 (0.4167 to 0.5047)`, or `+0.0120 (+0.0040 to +0.0200)`."""
        estimate, low, high = (f"{each:{'+' if signed else ''}.4f}" for each in (self.estimate, self.low, self.high))
        return f"{estimate} ({low} to {high})"


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
        of_seeds, of_rows = (squared_quantile(alpha, size) for size in (self.seeds, self.rows))
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


def squared_quantile(alpha: float | Figures, size: int) -> Figures:
    value: Figures = student.isf(np.asarray(alpha) / 2, max(1, size - 1)) ** 2
    return value


def interval(totals: Figures, counts: Figures, confidence: float) -> Interval:
    """The mean of one arm, or of a difference, with its interval."""
    return MeanSquares.of(totals, counts).interval(1 - confidence)
