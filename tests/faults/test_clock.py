"""A clock that is wrong: nothing that the program decides depends on the time of day."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.faults.inject import Fault
from tests.faults.server import Server
from tests.world import World, metrics_of, same_weights

YEAR = 365 * 24 * 3600.0


@pytest.mark.slow
@pytest.mark.parametrize("clock", [-3600.0, -40 * YEAR, 60 * YEAR])
def test_a_run_is_resumed_by_another_clock(server: Server, world: World, tmp_path: Path, clock: float) -> None:
    arguments = world.training("--project-dir", tmp_path, "--max-epochs", 1, "--checkpoint-every-n-steps", 2)
    assert server.run(*arguments, "--project", "whole").code == 0
    assert server.run(*arguments, "--project", "run", fault=Fault(at=8, what="SIGKILL")).code == -signal.SIGKILL
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = server.run("train", "--resume-training", "--load", last, fault=Fault(clock=clock))
    assert again.code == 0, again.err
    assert same_weights(last, tmp_path / "whole" / "checkpoints" / "last.ckpt")
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


@pytest.mark.slow
def test_runs_of_the_same_second_have_folders_of_their_own(server: Server, world: World, tmp_path: Path) -> None:
    """The clock stands still, so that the default names are equal."""
    arguments = world.training("--project-dir", tmp_path, "--max-steps", 1)
    for _ in range(2):
        assert server.run(*arguments, fault=Fault(stopped_at=1.7e9)).code == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [names[0], f"{names[0]}-2"]


@pytest.mark.parametrize("age", [-YEAR, 40 * YEAR])
def test_files_from_the_future_and_from_the_past(server: Server, world: World, tmp_path: Path, age: float) -> None:
    data = shutil.copytree(world.sst2, tmp_path / "data")
    for path in data.iterdir():
        os.utime(path, (1.8e9 - age, 1.8e9 - age))
    ended = server.run(*world.training("--project-dir", tmp_path, "--dataset-saved-path", data, "--max-steps", 1))
    assert ended.code == 0, ended.err
