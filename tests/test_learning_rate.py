"""`--learning-rate auto`, `--stop-after`, and the successive halving that a study shares with them."""

from __future__ import annotations

import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from actions.training import rates
from actions.training.halving import promoted, shares
from actions.training.rates import Choice, Trial, chosen, lengths, p_value
from options.optimization import RATES
from tests.test_bad_input import complaint
from tests.world import World, command, metrics_of, run, same_weights


def cost(rates: int) -> float:
    """Full runs that successive halving costs."""
    total, before = 0.0, 0.0
    for share in shares(rates):
        total, before, rates = total + rates * (share - before), share, max(1, rates // 2)
    return total


class TestHalving:
    def test_it_costs_less_than_three_runs(self) -> None:
        assert [round(cost(rates), 2) for rates in (1, 2, 3, 4, 8)] == [1, 1.5, 1.67, 2, 2.5]
        assert max(map(cost, range(1, 2000))) < 3
        assert all(shares(rates) == sorted(shares(rates)) for rates in range(1, 100))

    @pytest.mark.parametrize("rates", range(1, 10))
    def test_the_better_half_goes_on(self, rates: int) -> None:
        values = {float(rate): float(rate * 11 % rates) for rate in range(rates)}
        best = sorted(values, key=values.__getitem__)
        assert promoted(values, higher_is_better=False) == tuple(best[: max(1, rates // 2)])
        assert promoted(values, higher_is_better=True) == tuple(best[::-1][: max(1, rates // 2)])

    def test_equal_and_diverged_rates(self) -> None:
        assert promoted({0.4: 1.0, 0.1: 1.0, 0.3: 1.0, 0.2: 1.0}, higher_is_better=True) == (0.1, 0.2)
        assert promoted({0.1: math.nan, 0.2: 5.0, 0.3: 4.0, 0.4: math.inf}, higher_is_better=False) == (0.3,)
        assert promoted({0.1: math.nan}, higher_is_better=False) == ()


def trial(rate: float, losses: list[float], counts: list[int] | None = None, one_class: bool = False) -> Trial:
    every = np.array(losses, dtype=float)
    return Trial(rate, 1, every, np.array(counts or [1] * len(losses), dtype=float), one_class)


class TestRates:
    def test_rows_tell_rates_apart_by_a_paired_t_test(self) -> None:
        draw = np.random.default_rng(0)
        a, b = draw.normal(size=40), draw.normal(0.3, size=40)
        p = ttest_rel(a, b).pvalue
        assert p_value(trial(1, list(a)), trial(2, list(b))) == pytest.approx(p)
        assert p_value(trial(1, list(a)), trial(2, list(a))) == 1
        assert p_value(trial(1, [1.0, 2.0]), trial(2, [2.0, 3.0])) == 0  # each row differs alike
        assert p_value(trial(1, [3.0]), trial(2, [1.0])) == 1

    def test_long_rows_count_more(self) -> None:
        counts = [1, 1, 1, 97]
        each_token_alike = trial(2, [2.0, 3.0, 4.0, 99.0], counts)
        assert p_value(trial(1, [1.0, 2.0, 3.0, 2.0], counts), each_token_alike) == 0
        short_rows_alone = trial(1, [1.0, 2.0, 3.0, 99.0], counts)
        assert p_value(short_rows_alone, each_token_alike) > 0.3

    def test_the_lowest_rate_that_is_as_good_as_the_best_is_taken(self) -> None:
        best, alike = [1.0, 2.0, 3.0, 4.0], [1.5, 1.53, 3.4, 3.6]
        far, worse = [1.5, 1.6, 3.4, 3.6], [1.009, 2.009, 3.009, 4.0091]  # too few rows to tell; told apart
        assert chosen([trial(1e-4, worse), trial(1e-3, alike), trial(1e-2, best)]) == Choice(1e-3, (1e-3, 1e-2))
        assert chosen([trial(1e-3, far), trial(1e-2, best)]) == Choice(1e-2, (1e-2,))
        assert chosen([trial(1e-3, [math.nan] * 4), trial(1e-2, worse)]) == Choice(1e-2, (1e-2,))
        assert chosen([trial(1e-3, []), trial(1e-2, worse)]) == Choice(1e-2, (1e-2,))

    def test_one_class_is_out_unless_all_rates_predict_it(self) -> None:
        good, bad = [1.0, 2.0], [1.5, 2.9]
        assert chosen([trial(1, good, one_class=True), trial(2, bad)]).rate == 2
        assert chosen([trial(1, good, one_class=True), trial(2, bad, one_class=True)]).rate == 1

    def test_the_last_trials_are_those_of_the_two_best_and_the_one_below_the_best(self) -> None:
        def of(*losses: float, one_class: tuple[int, ...] = ()) -> tuple[float, ...]:
            return rates.promoted([trial(i, [loss], one_class=i in one_class) for i, loss in enumerate(losses)])

        assert of(5, 4, 1, 2, 3) == (1, 2, 3)
        assert of(5, 2, 1, 4, 3) == (1, 2)
        assert of(1, 2, 3, 4, 5) == (0, 1)
        assert of(5, 4, 3, 2, 1, one_class=(4,)) == (2, 3)
        assert of(math.nan, 4, math.inf, 2, 1) == (3, 4)
        assert of(math.nan, math.nan, 1) == (2,)

    @pytest.mark.parametrize(
        ("whole", "per_epoch", "rows", "steps"),
        [
            (1, 1, 8, (1,)),
            (1000, 68, 8, (1000,)),  # the run itself
            (1001, 143, 8, (250, 1000)),
            (1001, 1001, 2, (400, 1000)),  # not less than 800 rows
            (1200, 300, 2, (300, 1000)),  # or an epoch
            (5000, 5000, 8, (250, 1000)),
            (20_000, 5000, 8, (1000, 4000)),
            (2000, 2000, 1, (800, 1000)),
        ],
    )
    def test_the_length_of_the_trials(self, whole: int, per_epoch: int, rows: int, steps: tuple[int, ...]) -> None:
        assert lengths(whole, per_epoch, rows) == steps


def test_auto_is_the_run_with_the_rate_that_it_finds(capfd, world: World, tmp_path: Path) -> None:
    options = ("--max-epochs", 4, "--measured", "last", "--lr-scheduler", "linear", "--warmup-steps", 2)
    options += ("--lora-init", "gradient", "--accumulate-grad-batches", 2, "--project-dir", tmp_path)
    assert run(*world.training(*options, "--project", "auto", "--learning-rate", "auto", "--stop-after", 0.5)) == 0
    rate = tomllib.loads((tmp_path / "auto" / "config.toml").read_text())["learning_rate"]
    reason = r"\(the (best|lowest of .*) .*13 validation rows.* 24 steps, the whole run\)"
    assert re.search(f"learning rate: {rate:g} {reason}", capfd.readouterr().out)
    trials = json.loads((tmp_path / "auto" / "run.json").read_text())["trials"]
    assert [trial["learning_rate"] for trial in trials] == list(RATES)
    assert [trial["steps"] for trial in trials] == [24] * 5
    (of_rate,) = (trial["loss"] for trial in trials if trial["learning_rate"] == rate)

    last = tmp_path / "auto" / "checkpoints" / "last.ckpt"
    resumed = ("train", "--resume-training", "--load", last, "--learning-rate", "auto")
    assert run(*resumed) == 0
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["trials"] == trials
    assert run(*world.training(*options, "--project", "given", "--learning-rate", rate)) == 0
    assert same_weights(last, tmp_path / "given" / "checkpoints" / "last.ckpt")
    configs = [(tmp_path / name / "config.toml").read_text().replace("auto", "given") for name in ("auto", "given")]
    assert configs[0] == configs[1]
    assert metrics_of(tmp_path / "auto") == metrics_of(tmp_path / "given")
    assert metrics_of(tmp_path / "auto")["validation"]["loss"] == pytest.approx(of_rate)  # the trial was the run

    capfd.readouterr()
    tested = ("test", "--load", tmp_path / "auto", "--project-dir", tmp_path, "--project", "tested")
    assert run(*tested, "--learning-rate", "auto") == 0
    shown = capfd.readouterr().out
    assert "--learning-rate has no effect on test" in shown
    assert "learning rate:" not in shown


def test_a_longer_run_has_first_and_last_trials(
    capfd, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "_SHORT", 16)
    where = ("--project-dir", tmp_path, "--project", "longer", "--lr-scheduler", "linear")
    assert run(*world.training(*where, "--learning-rate", "auto", "--max-epochs", 2)) == 0
    trials = json.loads((tmp_path / "longer" / "run.json").read_text())["trials"]
    assert [trial["steps"] for trial in trials] == [12] * 5 + [16] * len(trials[5:])
    assert {trial["learning_rate"] for trial in trials[5:]} < set(RATES)
    assert re.search(r"learning rate: .*13 validation rows.* after 16 of the run's 24 steps\)", capfd.readouterr().out)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--optimizer", "sgd"), "not for sgd; give a number"),
        (("--learning-rate", "fast"), "--learning-rate 'fast' can't be read; give a number or auto"),
        (("--lr-scheduler", "cosine_annealing", "--eta-min", 1e-3), "give at most 5e-05"),
    ],
)
def test_what_auto_refuses(capfd, world: World, more: tuple, message: str) -> None:
    assert message in complaint(capfd, *command(*world.training("--learning-rate", "auto", *more)))


def test_auto_in_a_search_and_with_sharded_weights(capfd, world: World) -> None:
    auto = command(*world.training("--learning-rate", "auto"))
    assert "its trials would not reallocate; give a number" in complaint(capfd, "train-dyrealloc", *auto[1:])
    plain = ("train", world.opt, "sst2", "--pretrained", "--dataset-saved-path", world.sst2, "--strategy", "fsdp")
    line = complaint(capfd, *command(*plain, "--num-devices", 2, "--learning-rate", "auto"))
    assert "cannot be used with --strategy fsdp of a plain model; give a number" in line
