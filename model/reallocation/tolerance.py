"""How few elements are enough: the last choice of a search that shrinks with which the validation loss held."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

import numpy as np
import torch

from model.mean_squares import Figures, Interval, interval

CONFIDENCE = 0.95

#: `undecided`: the rows do not show whether the loss has risen by more than the tolerance.
Verdict = Literal["held", "risen", "undecided"]


@dataclass(frozen=True)
class RowLosses:
    """A validation, row by row. All validations of a run have the same rows in the same order.

    Attributes:
        losses: (rows,) the loss of each row, summed over what the row counts.
        counts: (rows,) how many that are: 1, or target tokens.
    """

    losses: Figures
    counts: Figures

    @classmethod
    def of(cls, rows: Sequence[tuple[float, float]]) -> RowLosses:
        """Of the loss and the count of each row."""
        losses, counts = np.asarray(rows, dtype=np.float64).reshape(-1, 2).T
        return cls(losses, counts)

    @property
    def mean(self) -> float:
        return float(self.losses.sum() / self.counts.sum())

    def rise_over(self, other: RowLosses) -> Interval:
        """The mean of this one − the mean of `other`, with the t interval of the paired differences of the rows."""
        return interval((self.losses - other.losses)[None], self.counts, CONFIDENCE)


@dataclass
class Tolerance:
    """Whether the validation loss holds: whether it is at most `rise` above the lowest one before.

    It has held if the whole interval of the difference is within `rise`, and has risen if the whole interval is beyond.
    If the rows do not decide it, the search goes on, and a later and smaller choice may hold.

    Attributes:
        lowest: the validation with the lowest mean loss so far.
        held: the keys of the elements that were on at the last validation that held, and `held_by`, its difference.
        last: the difference of the last validation.
        stopped: whether the search is over. From then on the choice is `held`.
    """

    rise: float
    lowest: RowLosses | None = None
    held: tuple[str, ...] = ()
    held_by: Interval | None = None
    last: Interval | None = None
    stopped: bool = False

    def judge(self, rows: RowLosses, on: Collection[str], ends: bool = False) -> Verdict | None:
        """Take in a validation with the elements `on`. `ends`: no further elements will be turned off.

        Returns the verdict: None for the first validation, after the search was stopped, and for a loss that is not
        finite before any finite one.
        """
        if self.stopped or (self.lowest is None and not math.isfinite(rows.mean)):
            return None
        if self.lowest is None:
            self.lowest, self.held = rows, tuple(sorted(on))
            return None
        self.last = rows.rise_over(self.lowest)
        verdict = self.verdict(self.last)
        if verdict == "held":
            self.held, self.held_by = tuple(sorted(on)), self.last
        self.stopped = verdict == "risen" or (ends and verdict == "undecided")
        if rows.mean < self.lowest.mean:
            self.lowest = rows
        return verdict

    def verdict(self, difference: Interval) -> Verdict:
        if difference.high <= self.rise:
            return "held"
        return "undecided" if difference.low <= self.rise else "risen"

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        rows = None if self.lowest is None else (self.lowest.losses, self.lowest.counts)
        return {
            "lowest": None if rows is None else torch.from_numpy(np.stack(rows)),
            "held": list(self.held),
            "held_by": None if self.held_by is None else list(astuple(self.held_by)),
            "last": None if self.last is None else list(astuple(self.last)),
            "stopped": self.stopped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lowest = None if state["lowest"] is None else RowLosses(*state["lowest"].numpy())
        self.held, self.stopped = tuple(state["held"]), state["stopped"]
        self.held_by, self.last = (
            None if state[name] is None else Interval(*state[name]) for name in ("held_by", "last")
        )
