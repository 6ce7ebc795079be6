"""The statistics of a study, against independent computations and simulated truth."""

from __future__ import annotations

import numpy as np
import pytest

from tools.studies import statistics
from tools.studies.statistics import Rows, bootstrap, differences, holm, interval, seeds_needed


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 2000)


def arm(shift: float, seeds: int = 6, rows: int = 300, noise: float = 0.02, draw: int = 0) -> Rows:
    """An arm whose rows share their difficulty with those of other arms, plus a part of each seed."""
    difficulty = np.random.default_rng(99).normal(0.7, 0.3, rows)
    own = np.random.default_rng(draw)
    totals = difficulty + shift + own.normal(0, noise, (seeds, 1)) + own.normal(0, 0.05, (seeds, rows))
    return Rows(totals, np.ones(rows))


def test_the_interval_of_rows_alone_is_that_of_the_central_limit_theorem() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.2, (1, 400))
    found = interval(values, np.ones(400), 0.95)
    half = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert found.estimate == pytest.approx(values.mean())
    assert found.high - found.estimate == pytest.approx(half, rel=0.08)
    assert found.estimate - found.low == pytest.approx(half, rel=0.08)


def test_the_variance_over_seeds_is_not_underestimated_with_few_seeds() -> None:
    """Rows are equal, so only seeds vary: the variance is s² / S with the unbiased s²."""
    per_seed = np.array([0.60, 0.64, 0.71])
    draws = bootstrap(np.repeat(per_seed[:, None], 50, axis=1), np.ones(50))
    assert draws.std() == pytest.approx(per_seed.std(ddof=1) / np.sqrt(3), rel=0.06)


def test_rows_with_more_tokens_weigh_more() -> None:
    counts = np.array([1.0, 3.0])
    totals = np.array([[1.0, 9.0]])  # means 1 and 3 per token
    assert interval(totals, counts, 0.9).estimate == pytest.approx(10 / 4)


def test_a_real_difference_is_found_and_a_missing_one_is_not() -> None:
    arms = {"base": arm(0.0, draw=1), "same": arm(0.0, draw=2), "better": arm(0.06, draw=3)}
    found = differences(arms, "base", higher_is_better=True, confidence=0.95, resolve=0.01)
    assert found["better"].corrected < 0.05
    assert found["better"].interval.low > 0
    assert found["same"].corrected > 0.05
    assert found["same"].interval.low < 0 < found["same"].interval.high


def test_a_lower_loss_is_a_positive_difference() -> None:
    arms = {"base": arm(0.0, draw=1), "lower": arm(-0.06, draw=2)}
    found = differences(arms, "base", higher_is_better=False, confidence=0.95, resolve=0.01)
    assert found["lower"].interval.low > 0


def test_pairing_removes_what_the_rows_share() -> None:
    """The difficulty of rows spreads by 0.3; a paired difference does not see it."""
    arms = {"base": arm(0.0, noise=0.0, draw=1), "better": arm(0.02, noise=0.0, draw=2)}
    found = differences(arms, "base", True, 0.95, 0.01)["better"].interval
    unpaired = interval(arms["base"].totals, arms["base"].counts, 0.95)
    assert found.high - found.low < (unpaired.high - unpaired.low) / 5


def test_intervals_cover_the_truth_about_as_often_as_they_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "DRAWS", 500)
    covered = 0
    for trial in range(200):
        own = np.random.default_rng(trial)
        totals = own.normal(0, 0.1, (8, 1)) + own.normal(0, 1.0, (1, 60)) + own.normal(0, 0.3, (8, 60))
        found = interval(totals, np.ones(60), 0.9)
        covered += found.low <= 0 <= found.high
    assert 0.82 <= covered / 200 <= 0.96


def test_holm_is_that_of_a_worked_example() -> None:
    # p · (m − rank), then the running maximum: 0.01·4, 0.02·3, max(0.03·2, 0.06), 0.4
    corrected = holm({"d": 0.4, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"d": 0.4, "a": 0.04, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0


def test_the_seeds_needed_are_those_of_the_formula() -> None:
    per_seed = np.array([0.00, 0.02, 0.04, 0.06])
    apart = np.repeat(per_seed[:, None], 100, axis=1)  # rows do not vary
    expected = int(np.ceil(per_seed.var(ddof=1) / (0.01 / 1.959964) ** 2))
    assert seeds_needed(apart, np.ones(100), 0.95, 0.01) == expected


def test_no_number_of_seeds_helps_if_the_rows_are_too_few() -> None:
    apart = np.random.default_rng(0).normal(0, 1, (1, 20)).repeat(4, axis=0)
    assert seeds_needed(apart, np.ones(20), 0.95, 0.01) is None


def test_the_seeds_needed_give_an_interval_of_that_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a seed gets right or wrong by chance: their mean over seeds varies, and less so with more seeds."""
    monkeypatch.setattr(statistics, "DRAWS", 4000)
    draw = np.random.default_rng(5)
    needed = seeds_needed(draw.normal(0, 0.3, (40, 400)), np.ones(400), 0.95, 0.01)
    assert 22 <= needed <= 32  # 3 · 0.3² / 400 / (0.01 / 1.96)² = 26
    found = interval(draw.normal(0, 0.3, (needed, 400)), np.ones(400), 0.95)
    assert (found.high - found.low) / 2 == pytest.approx(0.01, rel=0.15)


def test_one_seed_says_nothing_about_other_seeds() -> None:
    assert seeds_needed(np.zeros((1, 20)), np.ones(20), 0.95, 0.01) is None


def test_one_row_says_nothing_about_other_rows() -> None:
    assert seeds_needed(np.arange(3.0).reshape(3, 1), np.ones(1), 0.95, 0.01) is None
