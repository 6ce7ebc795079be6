"""A disk that cannot be written ends a run in one line, and what was saved before stays as it is."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import CSVLogger

from actions import imp_test, train
from actions.training.checkpoints import SafeCheckpointIO
from main import main
from tests.test_bad_input import complaint
from tests.world import World, run, weights


def full_disk(*_: object, **__: object) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def scoring(world: World, *more: object) -> list[str]:
    _, *rest = world.training(*more)
    return ["imp-test", *(part for part in rest if part not in ("--learning-rate", "0.01"))]


class TestFolder:
    """A run folder that cannot be written is found before the model is loaded."""

    @pytest.fixture(autouse=True)
    def _no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def too_late(*_: object) -> None:
            raise AssertionError("the model is loaded")

        for action in (train, imp_test):
            monkeypatch.setattr(action, "build", too_late)

    @pytest.mark.parametrize("action", ["train", "imp-test"])
    @pytest.mark.parametrize(
        ("folder", "reason"),
        [("file/runs", "Not a directory"), ("/proc/none/runs", "No such file"), ("n" * 300, "File name too long")],
    )
    def test_that_cannot_be_made(self, world, tmp_path, capfd, action: str, folder: str, reason: str) -> None:
        (tmp_path / "file").touch()
        command = world.training if action == "train" else lambda *more: scoring(world, *more)
        line = complaint(capfd, *command("--project-dir", tmp_path / folder))
        assert reason in line
        assert folder in line
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_without_room(self, world: World, tmp_path: Path, capfd) -> None:
        earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, earlier[1]))
        try:
            code = main(world.training("--project-dir", tmp_path / "runs"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
        assert code == 2
        assert "(File too large)" in capfd.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_of_a_resumed_run(self, world: World, monkeypatch, tmp_path: Path, capfd) -> None:
        monkeypatch.undo()
        assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0
        monkeypatch.setattr(train, "build", full_disk)
        monkeypatch.setattr(os, "fsync", full_disk)
        files = sorted(tmp_path.rglob("*"))
        line = complaint(capfd, "train", "--resume-training", "--load", tmp_path / "run" / "checkpoints" / "last.ckpt")
        assert "No space left on device); free space" in line
        assert sorted(tmp_path.rglob("*")) == files


def test_a_failed_save_leaves_the_earlier_checkpoints(world: World, tmp_path: Path, monkeypatch, capfd) -> None:
    save, saved = torch.save, []

    def until_the_disk_is_full(contents: dict[str, Any], file: Any) -> None:
        saved.append(contents["global_step"])
        if len(saved) > 4:
            file.write(b"half")
            full_disk()
        save(contents, file)

    monkeypatch.setattr(torch, "save", until_the_disk_is_full)
    shared = ("--project-dir", tmp_path, "--project", "run", "--checkpoint-every-n-steps", 2)
    line = complaint(capfd, *world.training(*shared, "--logger", "none", "--accelerator", "cpu"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert f"cannot write '{last}' (No space left on device)" in line
    assert torch.load(last, weights_only=True)["global_step"] == saved[3]
    assert {path.name for path in last.parent.iterdir()} <= {"last.ckpt", "best.ckpt"}
    monkeypatch.undo()
    assert run("train", "--resume-training", "--load", last, "--max-steps", saved[3] + 1) == 0
    assert weights(last)


def test_a_logger_without_room_is_one_line(world: World, tmp_path: Path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(CSVLogger, "save", full_disk)
    shared = ("--project-dir", tmp_path, "--project", "run", "--max-epochs", 1, "--accelerator", "cpu")
    line = complaint(capfd, *world.training(*shared, "--logger", "csv"))
    assert f"cannot write '{tmp_path / 'run'}' (No space left on device); free space" in line


def test_checkpoints_do_not_need_the_folder_for_temporary_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "mkstemp", full_disk)
    SafeCheckpointIO().save_checkpoint({"global_step": 1}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt") == {"global_step": 1}


def test_a_resumed_run_removes_what_it_left_when_it_was_killed(world: World, tmp_path: Path) -> None:
    assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for left in (last.with_name(f".best.{os.getpid()}.tmp.ckpt"), tmp_path / "run" / f".lora.{os.getpid()}.tmp.toml"):
        left.touch()
    assert run("train", "--resume-training", "--load", last, "--max-steps", 2) == 0
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o027, 0o640)])
def test_all_files_of_a_run_follow_the_umask(world: World, tmp_path: Path, umask: int, permissions: int) -> None:
    earlier = os.umask(umask)
    try:
        arguments = world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)
        assert main([*arguments, "--accelerator", "cpu", "--logger", "csv"]) == 0
    finally:
        os.umask(earlier)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"last.ckpt", "adapter_model.safetensors", "metrics.csv", "config.toml"} <= {path.name for path in files}
    # The lock is no result.
    assert {path.stat().st_mode & 0o777 for path in files if path.name != ".lock"} == {permissions}
