"""Differences between arms, with intervals over seeds and rows. Pure functions of NumPy arrays.

All arms of a seed see the same data order, and all are measured on the same rows, so their differences are paired.
The interval is a bootstrap that draws seeds and rows independently of each other (crossed random effects; Owen 2007,
"The pigeonhole bootstrap", Annals of Applied Statistics 1(2)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

DRAWS = 10_000  # of a bootstrap
_CHUNK = 500  # draws at a time, which bounds memory

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
class Difference:
    """An arm against the baseline.

    Attributes:
        interval: arm − baseline, oriented so that a positive value means that the arm is better.
        corrected: the two-sided p value after Holm's correction for the number of arms.
        simultaneous: the interval at the level that Bonferroni's correction for the number of arms demands.
        seeds_needed: seeds for which `simultaneous` would show the difference, or be within the difference that
            matters; None if the rows alone make it wider, see `seeds_needed`.
    """

    interval: Interval
    corrected: float
    simultaneous: Interval
    seeds_needed: int | None


def bootstrap(totals: Figures, counts: Figures) -> Figures:
    """(DRAWS,) bootstrap means of `totals` (seeds, rows) per `counts` (rows,), with seeds and rows drawn anew.

    It counts the part of the variance that belongs to a seed on a row three times (McCullagh 2000, "Resampling and
    exchangeable arrays", Bernoulli 6(2)), so an interval is too wide rather than too narrow where that part is large.
    The deviations from the mean over seeds are enlarged by √(S / (S − 1)), because a bootstrap of S seeds
    underestimates their variance by (S − 1) / S (Davison & Hinkley 1997, section 2.5). With one seed only rows vary.
    """
    generator = np.random.default_rng(0)
    seeds, rows = totals.shape
    mean = totals.mean(0, keepdims=True)
    spread = math.sqrt(seeds / (seeds - 1)) if seeds > 1 else 1.0
    enlarged = mean + (totals - mean) * spread
    draws = []
    for _ in range(DRAWS // _CHUNK):
        of_rows = generator.multinomial(rows, np.full(rows, 1 / rows), size=_CHUNK).astype(np.float64)  # (draws, rows)
        of_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=_CHUNK) / seeds  # (draws, seeds)
        draws.append((of_seeds * (of_rows @ enlarged.T)).sum(1) / (of_rows @ counts))
    return np.concatenate(draws)


def interval(totals: Figures, counts: Figures, confidence: float) -> Interval:
    """The mean of one arm, or of a difference, with its percentile interval."""
    return _interval(float(totals.mean(0).sum() / counts.sum()), bootstrap(totals, counts), confidence)


def _interval(estimate: float, draws: Figures, confidence: float) -> Interval:
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high))


def differences(
    arms: Mapping[str, Rows], baseline: str, higher_is_better: bool, confidence: float, resolve: float
) -> dict[str, Difference]:
    """Every other arm against the baseline. All arms have the same seeds and rows."""
    sign = 1.0 if higher_is_better else -1.0
    others = [name for name in arms if name != baseline]
    found, p_values = {}, {}
    for name in others:
        apart = sign * (arms[name].totals - arms[baseline].totals)
        counts = arms[baseline].counts
        draws = bootstrap(apart, counts)
        estimate = float(apart.mean(0).sum() / counts.sum())
        below = (np.count_nonzero(draws <= 0) + 1) / (DRAWS + 1)
        above = (np.count_nonzero(draws >= 0) + 1) / (DRAWS + 1)
        p_values[name] = min(1.0, 2 * min(below, above))
        all_arms = 1 - (1 - confidence) / len(others)
        # With the difference as estimated, so narrow an interval shows it, or lies between -resolve and resolve.
        needed = seeds_needed(apart, counts, all_arms, max(abs(estimate), resolve - abs(estimate)))
        found[name] = (_interval(estimate, draws, confidence), _interval(estimate, draws, all_arms), needed)
    corrected = holm(p_values)
    return {
        name: Difference(pointwise, corrected[name], simultaneous, needed)
        for name, (pointwise, simultaneous, needed) in found.items()
    }


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (Holm 1979, Scandinavian Journal of Statistics 6(2))."""
    corrected, largest = {}, 0.0
    for position, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def seeds_needed(apart: Figures, counts: Figures, confidence: float, resolve: float) -> int | None:
    """The number of seeds S for which the interval of `bootstrap` has at most `resolve` on each side.

    That is z · √(σ²_rows / n + (σ²_seeds + 3 σ²_both / n) / S) ≤ `resolve` for n rows. The three variances are those
    of seeds, of rows, and of a seed on a row. The mean squares of `apart` (seeds, rows) estimate them, as in an
    analysis of variance with two random factors and one value in each cell. More seeds do not make the part of the rows
    smaller: None if it alone is too large. None with one seed or one row, which say nothing about others.
    """
    seeds, rows = apart.shape
    if min(seeds, rows) < 2:
        return None
    per_row = apart.mean(0).sum() / counts.sum()
    deviations = (apart - counts * per_row) * (rows / counts.sum())  # (seeds, rows), of a ratio estimate
    by_seed, by_row = deviations.mean(1, keepdims=True), deviations.mean(0, keepdims=True)
    both = float(((deviations - by_seed - by_row) ** 2).sum()) / ((seeds - 1) * (rows - 1))
    of_seeds = max(0.0, float(by_seed.var(ddof=1)) - both / rows)
    of_rows = max(0.0, float(by_row.var(ddof=1)) - both / seeds)
    room = (resolve / norm.ppf((1 + confidence) / 2)) ** 2 - of_rows / rows
    return None if room <= 0 else max(2, math.ceil((of_seeds + 3 * both / rows) / room))
