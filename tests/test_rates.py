"""Rates that are finite, and too large for a step in float32."""

from __future__ import annotations

import pytest

from tests.world import World, run


@pytest.mark.parametrize(
    "words",
    [
        ("--learning-rate", "1e38"),
        ("--learning-rate", "1e300"),
        ("--loraplus-ratio", "1e300"),
        ("--weight-decay", "1e300"),
        ("--lr-scheduler", "cosine_annealing", "--eta-min", "1e39"),
    ],
)
def test_a_rate_beyond_float32(world: World, tmp_path, capsys, words: tuple[str, ...]) -> None:
    assert run(*world.training("--project-dir", tmp_path, "--max-steps", 1), *words) == 2
    error = capsys.readouterr().err
    assert "at most 1e6" in error
    assert len(error.splitlines()) == 1


def test_the_largest_rates_end_as_diverged(world: World, tmp_path, capsys) -> None:
    rates = ("--learning-rate", "1e6", "--loraplus-ratio", "1e6", "--weight-decay", "1e6", "--optimizer", "sgd")
    assert run(*world.training("--project-dir", tmp_path, "--max-epochs", 2, *rates)) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_warm_up_rate_beyond_float32(world: World, tmp_path, capsys) -> None:
    words = world.training("--project-dir", tmp_path)[1:]
    assert run("imp-test", *words, "--importance-test-name", "snip", "--imp-warmup-lr", "1e39") == 2
    assert "at most 1e6" in capsys.readouterr().err
