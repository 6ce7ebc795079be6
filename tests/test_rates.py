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
        ("--optimizer", "adam", "--learning-rate", "1e39"),
    ],
)
def test_a_rate_beyond_float32(world: World, tmp_path, capsys, words: tuple[str, ...]) -> None:
    assert run(*world.training("--project-dir", tmp_path, "--max-steps", 2), *words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def test_a_warm_up_rate_beyond_float32(world: World, tmp_path, capsys) -> None:
    words = world.training("--project-dir", tmp_path)[1:]
    assert run("imp-test", *words, "--importance-test-name", "snip", "--imp-warmup-lr", "1e39") == 2
    assert "at most 1e6" in capsys.readouterr().err
