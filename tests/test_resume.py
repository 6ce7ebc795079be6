"""A resumed run ends with the weights of the run that was never stopped, bit for bit, wherever it was cut."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from actions.checkpoints import SafeCheckpointIO
from tests.world import World, metrics_of, run, same_weights

VARIANTS = {
    "plain": (),
    "accumulation": ("--accumulate-grad-batches", 2, "--val-check-interval", 4),
    "validation within the epoch": ("--val-check-interval", 5, "--lr-scheduler", "cosine_annealing"),
    "workers": ("--num-workers", 2, "--group-by-length"),
    "loraplus": ("--loraplus-ratio", 8, "--weight-decay", 0.1, "--lr-scheduler", "linear"),
    "steps": ("--max-steps", 17, "--lr-scheduler", "linear", "--warmup-steps", 3),
}


@pytest.fixture
def every_save_kept(monkeypatch: pytest.MonkeyPatch):
    """Beside each checkpoint a copy that later saves don't overwrite: what a run killed right then leaves behind."""
    save = SafeCheckpointIO.save_checkpoint

    def save_and_keep(self, checkpoint, path, storage_options=None) -> None:
        save(self, checkpoint, path, storage_options)
        folder = Path(path).parents[1]
        killed = folder / f"killed-{len(list(folder.glob('killed-*'))):02d}"
        shutil.copytree(folder, killed, ignore=shutil.ignore_patterns("killed-*"))

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", save_and_keep)


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_exact(world: World, tmp_path: Path, every_save_kept, variant: str) -> None:
    options = ("--project-dir", tmp_path, "--max-epochs", 2, "--checkpoint-every-n-steps", 1, "--project", "whole")
    assert run(*world.training(*options, *VARIANTS[variant])) == 0
    whole = tmp_path / "whole"
    killed = sorted(whole.glob("killed-*"))
    assert len(killed) > 10
    for folder in (killed[0], killed[3], killed[len(killed) // 2], killed[-3]):
        assert run("train", "--resume-training", "--load", folder / "checkpoints" / "last.ckpt") == 0
        for name in ("last", "best"):
            file = Path("checkpoints") / f"{name}.ckpt"
            assert same_weights(whole / file, folder / file), (folder.name, name)
        assert metrics_of(folder) == metrics_of(whole)


def test_a_run_cut_by_max_steps_goes_on_to_the_same_end(world: World, tmp_path: Path) -> None:
    options = ("--project-dir", tmp_path, "--max-epochs", 2)
    assert run(*world.training(*options, "--project", "whole")) == 0
    assert run(*world.training(*options, "--project", "cut", "--max-steps", 7)) == 0
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", last, "--max-steps", -1) == 0
    assert same_weights(tmp_path / "whole" / "checkpoints" / "last.ckpt", last)


def test_a_finished_run_resumes_into_more_epochs(world: World, tmp_path: Path) -> None:
    options = ("--project-dir", tmp_path)
    assert run(*world.training(*options, "--project", "whole", "--max-epochs", 3)) == 0
    assert run(*world.training(*options, "--project", "short", "--max-epochs", 1)) == 0
    last = tmp_path / "short" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", last, "--max-epochs", 3) == 0
    assert same_weights(tmp_path / "whole" / "checkpoints" / "last.ckpt", last)


def test_the_checkpoint_is_read_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0
    last, reads, load = tmp_path / "run" / "checkpoints" / "last.ckpt", [], torch.load

    def counted(file, **options):
        reads.append(file)
        return load(file, **options)

    monkeypatch.setattr(torch, "load", counted)
    assert run("train", "--resume-training", "--load", last, "--max-steps", 2) == 0
    assert reads == [last, last.with_name("best.ckpt")]
