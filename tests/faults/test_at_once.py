"""Programs that run at the same time. `tests/test_run_identity.py` has those that want the same run folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults.server import Server
from tests.world import World, metrics_of, same_weights


@pytest.mark.slow
def test_two_encode_the_same_data(server: Server, world: World, tmp_path: Path) -> None:
    """The data set cache has nothing of this folder before. A third run finds what the two wrote."""
    data = shutil.copytree(world.sst2, tmp_path / "data")
    (data / "train.jsonl").write_text((data / "train.jsonl").read_text() * 20)
    shared = ("--project-dir", tmp_path, "--dataset-saved-path", data, "--max-steps", 2)
    commands = [world.training(*shared, "--project", name) for name in ("one", "two")]
    for ended in (*server.run_at_once(*commands), server.run(*world.training(*shared, "--project", "three"))):
        assert ended.code == 0, ended.err
        assert ended.problem is None
    for name in ("two", "three"):
        checkpoints = (tmp_path / project / "checkpoints" / "last.ckpt" for project in ("one", name))
        assert same_weights(*checkpoints)
        assert metrics_of(tmp_path / "one") == metrics_of(tmp_path / name)


def test_two_runs_of_one_name(server: Server, world: World, tmp_path: Path) -> None:
    arguments = world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)
    assert [ended.code for ended in server.run_at_once(arguments, arguments)] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run-2"}
    assert same_weights(*(tmp_path / name / "checkpoints" / "last.ckpt" for name in ("run", "run-2")))
