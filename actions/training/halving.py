"""Successive halving of learning rates (Jamieson & Talwalkar 2016)."""

from __future__ import annotations

import math
from collections.abc import Mapping

_MOST = 1.9  # full runs that the rungs before the last one may cost, besides the run of the best rate


def shares(rates: int) -> list[float]:
    """The share of the run at which each rung ends; the last one is 1.

    A rung with n rates left ends at c / n, and ⌊n / 2⌋ of them go on, at least one. A rate continues where it stopped,
    so all rates together cost 1 + c · Σ (1 − ⌊n / 2⌋ / n) full runs, summed over the rungs with n > 1. c is 1 for up to
    15 rates, which cost at most 2.8. For more rates c is smaller, so that they cost at most 2.9.
    """
    left = []
    while rates > 1:
        left.append(rates)
        rates //= 2
    c = min(1.0, _MOST / sum(1 - n // 2 / n for n in left)) if left else 1.0
    return [*(float(f"{c / n:.4g}") for n in left), 1.0]


def promoted(values: Mapping[float, float], higher_is_better: bool) -> tuple[float, ...]:
    """The rates that go on, best first: the better half, rounded down, at least one. `values`: rate -> value.

    Rates with a value that is not finite are left out. Of equal rates the lower one is better.
    """
    sign = -1.0 if higher_is_better else 1.0
    finite = [rate for rate, value in values.items() if math.isfinite(value)]
    return tuple(sorted(finite, key=lambda rate: (sign * values[rate], rate))[: max(1, len(finite) // 2)])
