"""`--learning-rate auto`, `--stop-after`, and the successive halving that a study shares with them."""

from __future__ import annotations

import importlib.util
import json
import math
import tomllib
from pathlib import Path

import pytest

from actions.training.halving import promoted, shares
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


def test_auto_is_the_run_with_the_rate_that_it_finds(capfd, world: World, tmp_path: Path) -> None:
    options = ("--max-epochs", 1, "--measured", "last", "--lr-scheduler", "linear", "--warmup-steps", 2)
    options += ("--lora-init", "gradient", "--accumulate-grad-batches", 2, "--project-dir", tmp_path)
    assert run(*world.training(*options, "--project", "auto", "--learning-rate", "auto", "--stop-after", 0.5)) == 0
    rate = tomllib.loads((tmp_path / "auto" / "config.toml").read_text())["learning_rate"]
    assert f"learning rate: {rate:g}" in capfd.readouterr().out
    trials = json.loads((tmp_path / "auto" / "run.json").read_text())["trials"]
    assert [trial["learning_rate"] for trial in trials[:5]] == list(RATES)
    assert rate == min(trials[5:], key=lambda trial: trial["loss"])["learning_rate"]

    last = tmp_path / "auto" / "checkpoints" / "last.ckpt"
    resumed = ("train", "--resume-training", "--load", last, "--learning-rate", "auto")
    assert run(*resumed) == 0
    assert json.loads((tmp_path / "auto" / "run.json").read_text())["trials"] == trials
    assert run(*world.training(*options, "--project", "given", "--learning-rate", rate)) == 0
    assert same_weights(last, tmp_path / "given" / "checkpoints" / "last.ckpt")
    configs = [(tmp_path / name / "config.toml").read_text().replace("auto", "given") for name in ("auto", "given")]
    assert configs[0] == configs[1]
    assert metrics_of(tmp_path / "auto") == metrics_of(tmp_path / "given")

    capfd.readouterr()
    tested = ("test", "--load", tmp_path / "auto", "--project-dir", tmp_path, "--project", "tested")
    assert run(*tested, "--learning-rate", "auto") == 0
    shown = capfd.readouterr().out
    assert "--learning-rate has no effect on test" in shown
    assert "learning rate:" not in shown


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


def test_auto_without_its_package_or_in_a_search(capfd, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = command(*world.training("--learning-rate", "auto"))
    assert "its trials would not reallocate; give a number" in complaint(capfd, "train-dyrealloc", *auto[1:])
    plain = ("train", world.opt, "sst2", "--pretrained", "--dataset-saved-path", world.sst2, "--strategy", "fsdp")
    line = complaint(capfd, *command(*plain, "--num-devices", 2, "--learning-rate", "auto"))
    assert "cannot be used with --strategy fsdp of a plain model; give a number" in line
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else found(name))
    assert "needs the package optuna; pip install optuna" in complaint(capfd, *auto)
