"""Which learning rate the trials of `--learning-rate auto` choose. Pure functions of the losses of validation rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

_LEVEL = 0.05  # of the test that rows tell two rates apart
_MATTERS = 0.01  # a larger difference in loss counts, also where the rows are too few to tell: it is the better guess

_SHORT = 1000  # steps of a run of which all trials are whole runs: a part of it would not show where it overfits
_SHARE = 0.2  # of a longer run, which the last trials train, but not less than `_SHORT`
_FIRST = 0.25  # of the last trials, which the first ones train
_ROWS = 800  # on which the first trials train at least, or an epoch


@dataclass(frozen=True)
class Trial:
    """A short training run with a learning rate.

    Attributes:
        totals: the loss of each validation row, summed over what the row counts. All trials have the same rows.
        counts: how many that are: 1 for a classification, target tokens for a language model.
        one_class: whether it predicts one class for all rows, which have several.
    """

    rate: float
    steps: int
    totals: NDArray[np.float64] = field(repr=False)
    counts: NDArray[np.float64] = field(repr=False)
    one_class: bool = False

    @property
    def loss(self) -> float:
        """The mean loss. NaN if a part of it is not finite, or the training diverged and measured no row."""
        total = float(self.totals.sum())
        return total / float(self.counts.sum()) if len(self.counts) and math.isfinite(total) else math.nan

    @property
    def finished(self) -> bool:
        return math.isfinite(self.loss)

    def as_dict(self) -> dict[str, Any]:
        loss = self.loss if self.finished else None  # None: it diverged
        return {"learning_rate": self.rate, "steps": self.steps, "loss": loss, "one_class": self.one_class}


@dataclass(frozen=True)
class Choice:
    """The rate that was chosen, and the rates that the rows cannot tell apart from the best, lowest first."""

    rate: float
    alike: tuple[float, ...]


def lengths(whole: float, per_epoch: int, rows_per_step: int) -> tuple[int, ...]:
    """The optimizer steps of the first and of the last trials of a run of `whole` steps; one number if it is short.

    The first ones last an epoch of `per_epoch` steps at least, or `_ROWS` rows if that is less.
    """
    if whole <= _SHORT:
        return (int(whole),)
    last = round(max(_SHORT, _SHARE * whole))
    enough = min(per_epoch, math.ceil(_ROWS / rows_per_step))
    first = min(last, max(round(_FIRST * last), enough))
    return tuple(dict.fromkeys((first, last)))


def promoted(trials: Sequence[Trial]) -> tuple[float, ...]:
    """The rates of the last trials: the two best, and the one below the best, because a longer run suits lower rates.

    A trial that predicts one class comes after those that do not. A rate that diverged is left out.
    """
    finished = [trial for trial in trials if trial.finished]
    order = sorted(finished, key=lambda trial: (trial.one_class, trial.loss, trial.rate))
    kept = {trial.rate for trial in order[:2]}
    kept |= {max((trial.rate for trial in finished if trial.rate < order[0].rate), default=order[0].rate)}
    return tuple(sorted(kept))


def chosen(trials: Sequence[Trial]) -> Choice:
    """The lowest of the rates that the rows cannot tell apart from the best, and whose loss is near that of the best.

    A trial that predicts one class is out, unless all do. At least one trial must have finished.
    """
    finished = [trial for trial in trials if trial.finished]
    fit = [trial for trial in finished if not trial.one_class] or finished
    best = min(fit, key=lambda trial: (trial.loss, trial.rate))
    near = (trial for trial in fit if trial.loss <= best.loss + _MATTERS)
    alike = sorted(trial.rate for trial in near if p_value(trial, best) >= _LEVEL)
    return Choice(alike[0], tuple(alike))


def p_value(one: Trial, other: Trial) -> float:
    """The two-sided p value of a paired t test that two trials have the same mean loss.

    Rows may count differently. Then the mean is a ratio of sums, and the residuals of the rows give its standard error
    (Cochran 1977, Sampling Techniques, section 6.4). It is 1 for equal losses, and 0 if each row differs alike.
    """
    differences, rows = one.totals - other.totals, len(one.counts)
    mean = differences.sum() / one.counts.sum()
    if mean == 0 or rows < 2:
        return 1.0
    residuals = differences - mean * one.counts
    error = math.sqrt(rows / (rows - 1) * float((residuals**2).sum())) / float(one.counts.sum())
    return float(2 * t.sf(abs(mean) / error, rows - 1)) if error else 0.0
