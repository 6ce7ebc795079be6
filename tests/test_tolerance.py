"""Whether a validation loss holds: the paired differences of its rows, and what a search does with them."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from model.reallocation.tolerance import RowLosses, Tolerance

DRAW = np.random.default_rng(0)
FIRST = DRAW.gamma(2.0, size=40)


def rows(values: np.ndarray, counts: np.ndarray | float = 1.0) -> RowLosses:
    return RowLosses(values, np.broadcast_to(counts, values.shape).astype(float))


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    second = FIRST + DRAW.normal(0.1, 0.3, size=40)
    expected = ttest_rel(second, FIRST).confidence_interval(0.95)
    found = rows(second).rise_over(rows(FIRST))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.estimate == pytest.approx(second.mean() - FIRST.mean())


def test_the_loss_and_the_count_of_each_row() -> None:
    found = RowLosses.of([(6.0, 3.0), (1.0, 1.0), (2.0, 2.0)])
    assert (found.losses.tolist(), found.counts.tolist(), found.mean) == ([6, 1, 2], [3, 1, 2], 1.5)


def test_a_row_of_many_tokens_counts_more() -> None:
    counts = np.array([1.0, 3.0])
    assert rows(np.array([2.0, 6.0]), counts).rise_over(rows(np.array([1.0, 0.0]), counts)).estimate == 7 / 4


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (0.0, 0.01, "held"),
        (0.3, 0.01, "risen"),
        (0.1, 1.0, "undecided"),
        (-0.1, 1.0, "undecided"),
        (math.nan, 0, "risen"),
    ],
)
def test_the_rows_decide(shift: float, spread: float, verdict: str) -> None:
    """Two of the undecided ones differ in the mean, one up and one down: means do not decide."""
    tolerance = Tolerance(0.05)
    assert tolerance.judge(rows(FIRST), {"a", "b"}) is None
    second = FIRST + shift + spread * np.resize([-1.0, 1.0], 40)
    assert tolerance.judge(rows(second), {"a"}) == verdict
    assert tolerance.stopped == (verdict == "risen")
    assert tolerance.held == (("a",) if verdict == "held" else ("a", "b"))


def test_undecided_goes_on_until_nothing_more_is_turned_off() -> None:
    tolerance, noisy = Tolerance(0.05), rows(FIRST + np.resize([-1.0, 1.0], 40))
    tolerance.judge(rows(FIRST), {"a", "b", "c"})
    assert tolerance.judge(noisy, {"a", "b"}) == "undecided"
    assert not tolerance.stopped
    assert tolerance.judge(noisy, {"a"}, ends=True) == "undecided"
    assert tolerance.stopped
    assert tolerance.held == ("a", "b", "c")
    assert tolerance.judge(rows(FIRST), {"a"}) is None


def test_a_slow_rise_is_measured_from_the_lowest() -> None:
    tolerance, verdicts = Tolerance(0.05), []
    for step, loss in enumerate((0.0, -0.2, -0.18, -0.16, -0.14)):
        verdicts.append(tolerance.judge(rows(FIRST + loss), {f"{step}"}))
    assert verdicts == [None, "held", "held", "held", "risen"]
    assert tolerance.held == ("3",)


def test_a_checkpoint_keeps_it() -> None:
    straight, again = Tolerance(0.05), Tolerance(0.05)
    straight.judge(rows(FIRST), {"a", "b"})
    straight.judge(rows(FIRST + 0.01), {"a"})
    file = BytesIO()
    torch.save(straight.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    later = rows(FIRST + 0.2)
    assert straight.judge(later, {"c"}) == again.judge(later, {"c"}) == "risen"
    assert again.last == straight.last
    assert (again.held, again.held_by, again.stopped) == (straight.held, straight.held_by, straight.stopped)
