"""Successive halving of learning rates (Jamieson & Talwalkar 2016), with the pruner of Optuna."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping

from heterolora.common.errors import UserError

_MOST = 1.9  # full runs that the rungs before the last one may cost, besides the run of the best rate


def check_optuna(what: str) -> None:
    """Raise UserError if Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"{what} needs the package optuna", "pip install optuna")


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
    order = sorted(finite, key=lambda rate: (sign * values[rate], rate))
    return tuple(rate for place, rate in enumerate(order) if not _is_pruned(place, len(order)))


def _is_pruned(place: int, trials: int) -> bool:
    """Whether Optuna prunes the trial in this place of the order.

    Its pruner is asynchronous: it compares a trial with those that reached the rung before. Here all trials reach it
    together, so each one is judged as the last. Places instead of values keep the half exact where values are equal.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    study = optuna.create_study(pruner=pruner)
    pruned = False
    for value in (*(other for other in range(trials) if other != place), place):
        trial = study.ask()
        trial.report(value, step=1)
        pruned = trial.should_prune()
    return pruned
