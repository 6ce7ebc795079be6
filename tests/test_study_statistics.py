"""The statistics of a study, against independent computations and simulated truth."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy.stats import chi2, ttest_1samp
from scipy.stats import t as student

from benchmarks.interval_coverage import CASES, SEEDS, Shares, simulate
from model.mean_squares import MeanSquares, interval
from tests.world import ROOT
from tools.studies.statistics import MOST_SEEDS, Rows, differences, holm, seeds_needed, step_down


def arm(shift: float, seeds: int = 6, rows: int = 300, noise: float = 0.02, draw: int = 0) -> Rows:
    """An arm whose rows share their difficulty with those of other arms, plus a part of each seed."""
    difficulty = np.random.default_rng(99).normal(0.7, 0.3, rows)
    own = np.random.default_rng(draw)
    totals = difficulty + shift + own.normal(0, noise, (seeds, 1)) + own.normal(0, 0.05, (seeds, rows))
    return Rows(totals, np.ones(rows))


@pytest.mark.parametrize("size", [40, 2])
@pytest.mark.parametrize("of_rows", [True, False])
def test_the_interval_of_rows_or_of_seeds_alone_is_that_of_a_t_test(of_rows: bool, size: int) -> None:
    """One seed on `size` rows, or as many seeds that no row tells apart."""
    values = np.random.default_rng(0).normal(0.5, 0.2, size)
    totals = values[None] if of_rows else np.repeat(values[:, None], 50, axis=1)
    found = interval(totals, np.ones(totals.shape[1]), 0.95)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((values.mean(), expected.low, expected.high))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("seeds", "rows"), [(3, 7), (2, 2)])
def test_the_mean_squares_are_those_of_their_definition(seeds: int, rows: int, count: int) -> None:
    values = np.random.default_rng(0).normal(size=(seeds, rows))
    mean, of_seed, of_row = values.mean(), values.mean(1), values.mean(0)
    found = MeanSquares.of(values * count, np.full(rows, float(count)))
    assert found.of_seeds == pytest.approx(rows * sum((of_seed - mean) ** 2) / (seeds - 1))
    assert found.of_rows == pytest.approx(seeds * sum((of_row - mean) ** 2) / (rows - 1))
    both = [(values[s, r] - of_seed[s] - of_row[r] + mean) ** 2 for s in range(seeds) for r in range(rows)]
    assert found.of_both == pytest.approx(sum(both) / ((seeds - 1) * (rows - 1)))


def test_seeds_that_agree_by_chance_do_not_make_an_interval_narrow() -> None:
    """Each seed has one row more right than the baseline, each time another one: nothing is known about the mean."""
    apart = np.zeros((3, 60))
    apart[[0, 1, 2], [4, 20, 33]] = 1
    squares = MeanSquares.of(apart, np.ones(60))
    assert squares.of_seeds == pytest.approx(0, abs=1e-12)
    assert squares.p_value(float(squares.estimate)) > 0.05


def test_one_value_says_nothing() -> None:
    squares = MeanSquares.of(np.ones((1, 1)), np.ones(1))
    assert squares.interval(0.05).high == np.inf
    assert squares.p_value(1.0) == 1


def test_a_p_value_is_the_level_whose_interval_ends_there() -> None:
    random = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.3):
        squares = MeanSquares.of(random.normal(shift, 1, (4, 50)), np.ones(50))
        distance = abs(float(squares.estimate))
        assert squares.half_width(squares.p_value(distance)) == pytest.approx(distance, rel=1e-6)
    assert MeanSquares.of(np.zeros((3, 5)), np.ones(5)).p_value(0.0) == 1


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


def test_a_difference_is_that_of_its_mean_squares() -> None:
    """Two arms against the baseline, so that the level of each is half of 0.05. One is near, and one is far."""
    arms = {"base": arm(0.0, draw=1), "near": arm(0.006, draw=2), "far": arm(0.09, draw=3)}
    found = differences(arms, "base", True, 0.95, resolve=0.03)
    for name, width in (("near", lambda estimate: 0.03 - estimate), ("far", lambda estimate: estimate)):
        squares = MeanSquares.of(arms[name].totals - arms["base"].totals, np.ones(300))
        estimate = abs(float(squares.estimate))
        assert width(estimate) == max(estimate, 0.03 - estimate)
        assert found[name].interval.high == pytest.approx(squares.interval(0.05).high)
        assert found[name].simultaneous.high == pytest.approx(squares.interval(0.025).high)
        assert found[name].seeds_needed == seeds_needed(squares, 0.025, width(estimate))


def test_an_arm_is_not_shown_to_be_as_good_after_one_that_is_not() -> None:
    arms = {"base": arm(0.0, draw=1), "equal": arm(0.0, draw=2), "worse": arm(-0.2, draw=3), "better": arm(0.1, draw=4)}
    found = step_down(arms, "base", True, 0.95, resolve=0.05)
    squares = MeanSquares.of(arms["equal"].totals - arms["base"].totals, np.ones(300))
    room = float(squares.estimate) + 0.05
    equal, worse, better = (found[name] for name in ("equal", "worse", "better"))
    assert equal.corrected == pytest.approx(squares.p_value(room))
    assert 0 < equal.corrected < 0.05
    assert worse.corrected == better.corrected == 1
    assert equal.interval.high == equal.simultaneous.high == pytest.approx(squares.interval(0.05).high)
    assert equal.seeds_needed == seeds_needed(squares, 0.05, room)
    assert worse.seeds_needed is None


def test_a_lower_loss_is_a_positive_difference() -> None:
    arms = {"base": arm(0.0, draw=1), "lower": arm(-0.06, draw=2)}
    found = differences(arms, "base", higher_is_better=False, confidence=0.95, resolve=0.01)
    assert found["lower"].interval.low > 0
    assert found["lower"].simultaneous == found["lower"].interval, "it is the only one"


def test_pairing_removes_what_the_rows_share() -> None:
    """The difficulty of rows spreads by 0.3; a paired difference does not see it."""
    arms = {"base": arm(0.0, noise=0.0, draw=1), "better": arm(0.02, noise=0.0, draw=2)}
    found = differences(arms, "base", True, 0.95, 0.01)["better"].interval
    unpaired = interval(arms["base"].totals, arms["base"].counts, 0.95)
    assert found.high - found.low < (unpaired.high - unpaired.low) / 5


CHECKED = ("seeds only", "rows only", "all three", "accuracy of 0.9")


@pytest.mark.parametrize("case", [case for case in CASES if case.name in CHECKED], ids=lambda case: case.name)
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_keep_what_the_documentation_promises(case, seeds: int) -> None:
    """`python -m benchmarks.interval_coverage` simulates many more studies, and all cases."""
    found = simulate(case, seeds, 400, np.random.default_rng(1))
    assert found.keeps_the_promise(seeds), found


def test_a_claim_of_the_simulation_is_a_p_value_after_holms_correction() -> None:
    """The simulation computes no p values."""
    case, claimed = CASES[0], 0
    totals, counts = case.draw(np.random.default_rng(6), 50, 3)
    for study, count in zip(totals, counts, strict=True):
        arms = {str(number): Rows(arm, count) for number, arm in enumerate(study)}
        found = differences(arms, "0", True, 0.95, 0.01).values()
        claimed += any(difference.corrected <= 0.05 for difference in found)
    assert claimed > 0
    assert simulate(case, 3, 50, np.random.default_rng(6)).false_of_all == claimed / 50


def test_the_table_in_the_documentation_has_all_cases_and_keeps_the_promise() -> None:
    lines = [line for line in (ROOT / "docs" / "studies.md").read_text().splitlines() if re.match(r"\|.*\d%", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [(name, int(rows)) for name, rows, *_ in cells] == [(case.name, case.rows) for case in CASES]
    for name, _, *shares in cells:
        covers, two, every = np.reshape([float(share.rstrip("%")) / 100 for share in shares], (3, len(SEEDS)))
        assert two == pytest.approx(1 - covers, abs=0.0011)
        assert all(map(Shares.keeps_the_promise, map(Shares, covers, every), SEEDS)), name


def test_holm_is_that_of_a_worked_example() -> None:
    # p · (m − rank), then the running maximum: 0.01·4, 0.02·3, max(0.03·2, 0.06), 0.4
    corrected = holm({"d": 0.4, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"d": 0.4, "a": 0.04, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8})["a"] == 1.0


@pytest.mark.parametrize("per_row", [0.0, 0.08], ids=["", "and the rows vary"])
@pytest.mark.parametrize("per_seed", [[0.00, 0.02, 0.04, 0.06], [0.02, 0.022]], ids=["4 seeds", "2 seeds"])
def test_the_seeds_needed_are_those_of_the_formula(per_seed: list[float], per_row: float) -> None:
    both = per_row * np.random.default_rng(0).normal(0, 0.3, (len(per_seed), 100))
    squares = MeanSquares.of(np.array(per_seed)[:, None] + per_row * np.linspace(-1, 1, 100) + both, np.ones(100))
    found, free = seeds_needed(squares, 0.05, 0.03), len(per_seed) - 1
    of_rows = float(squares.of_rows - squares.of_both) / (100 * len(per_seed))
    fixed = student.ppf(0.975, 99) ** 2 * max(0, of_rows)  # more seeds do not change it
    for size, share in ((found.low, 0.975), (found.high, 0.025)):
        variance = max(squares.of_both, squares.of_seeds * free / chi2.ppf(share, free)) / 100
        wide = [
            student.ppf(0.975, seeds - 1) ** 2 * variance / seeds + fixed for seeds in (size - 1, size) if seeds > 1
        ]
        assert wide[-1] <= 0.03**2
        assert size == 2 or wide[0] > 0.03**2
    assert seeds_needed(squares, 0.05, 1.0).low == 2
    assert seeds_needed(squares, 0.05, float(np.sqrt(fixed)) * 0.999) is None
    assert seeds_needed(squares, 0.05, 0.0) is None


def test_more_seeds_than_the_most_are_no_number() -> None:
    per_seed = np.array([0.00, 0.02, 0.04, 0.06])
    squares = MeanSquares.of(np.repeat(per_seed[:, None], 100, axis=1), np.ones(100))  # rows do not vary
    variance = per_seed.var(ddof=1) * 3 / chi2.ppf(0.025, 3)
    width = student.ppf(0.975, MOST_SEEDS - 1) * np.sqrt(variance / MOST_SEEDS)
    assert MOST_SEEDS == 1000
    assert seeds_needed(squares, 0.05, width * 1.00001).high == 1000
    assert seeds_needed(squares, 0.05, width * 0.9999).high is None
    assert seeds_needed(squares, 0.05, width / 100).low == 1000


def test_the_range_of_the_seeds_needed_contains_their_number() -> None:
    """A difference of 0 whose seeds vary by 0.017: 14 of them give an interval of ±0.01."""
    random, held = np.random.default_rng(4), 0
    for _ in range(200):
        apart = random.normal(0, 0.017, (3, 1)) + random.normal(0, 1e-4, (3, 50))
        found = seeds_needed(MeanSquares.of(apart, np.ones(50)), 0.05, 0.01)
        held += found.low <= 14 <= (found.high or MOST_SEEDS)
    assert held >= 185


def test_no_number_of_seeds_helps_if_the_rows_are_too_few() -> None:
    apart = np.random.default_rng(0).normal(0, 1, (1, 20)).repeat(4, axis=0)
    assert seeds_needed(MeanSquares.of(apart, np.ones(20)), 0.05, 0.01) is None


@pytest.mark.parametrize("shape", [(1, 20), (3, 1)])
def test_one_seed_or_one_row_says_nothing_about_others(shape: tuple[int, int]) -> None:
    apart = np.arange(float(np.prod(shape))).reshape(shape)
    assert seeds_needed(MeanSquares.of(apart, np.ones(shape[1])), 0.05, 0.01) is None
