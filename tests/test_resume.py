"""A resumed run ends with the weights of the run that was never stopped, bit for bit, wherever it was cut."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from actions.training.callbacks import SeedEachBatch
from actions.training.checkpoints import SafeCheckpointIO
from tests.quick import some_slow
from tests.world import World, command, main, metrics_of, run, same_weights

WRITTEN = ("config.toml", "parameters.json", "logs/metrics.csv", "logs/hparams.yaml", "lora.toml")

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


@pytest.mark.parametrize(
    "variant",
    some_slow(VARIANTS, quick=["plain", "accumulation"]),
)
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


def with_curves(*arguments: object) -> None:
    """A command that logs every step in a CSV file."""
    assert main([*command(*arguments), "--logger", "csv", "--log-every-n-steps", "1"]) == 0


def assert_same_files(one: Path, other: Path) -> None:
    """The folders hold the same, apart from the name of the run."""
    for name in WRITTEN:
        written, expected = ((folder / name).read_text().replace(one.name, other.name) for folder in (one, other))
        assert written == expected, name
    assert metrics_of(one) == metrics_of(other)
    for name in ("last", "best"):
        assert same_weights(one / "checkpoints" / f"{name}.ckpt", other / "checkpoints" / f"{name}.ckpt"), name


@pytest.mark.parametrize(("interval", "every"), some_slow([(4, 6), (0.3, 3), (1, 3)], quick=[(4, 6)]))
def test_the_best_checkpoint_resumes_exactly(
    world: World, tmp_path: Path, every_save_kept, capsys, interval, every
) -> None:
    """An accumulation window of 3 batches does not end at the 4th batch: the validation is at the 6th. 1 is a batch."""
    windows = ("--max-epochs", 2, "--accumulate-grad-batches", 3, "--val-check-interval", interval)
    with_curves(*world.training("--project-dir", tmp_path, *windows, "--project", "whole"))
    assert (f"validating every {every} batches" in capsys.readouterr().out) == isinstance(interval, int)
    for killed in sorted((tmp_path / "whole").glob("killed-*/checkpoints/best.ckpt"))[:2]:
        with_curves("train", "--resume-training", "--load", killed)
        folder = killed.parents[1]
        shutil.copytree(folder, tmp_path / folder.name)
        assert_same_files(tmp_path / folder.name, tmp_path / "whole")


def test_the_files_are_those_of_an_uninterrupted_run(world: World, tmp_path: Path, every_save_kept) -> None:
    """Also the curve of the step after which the run was killed."""
    options = ("--project-dir", tmp_path, "--max-epochs", 2, "--checkpoint-every-n-steps", 5)
    with_curves(*world.training(*options, "--project", "whole"))
    killed = sorted((tmp_path / "whole").glob("killed-*"))
    for folder in (killed[0], killed[1], killed[-2]):
        with_curves("train", "--resume-training", "--load", folder / "checkpoints" / "last.ckpt")
        shutil.copytree(folder, tmp_path / folder.name)
        assert_same_files(tmp_path / folder.name, tmp_path / "whole")


def test_a_longer_run_is_stated(world: World, tmp_path: Path) -> None:
    with_curves(*world.training("--project-dir", tmp_path, "--max-epochs", 3, "--project", "whole", "--patience", 9))
    with_curves(*world.training("--project-dir", tmp_path, "--max-epochs", 1, "--project", "short"))
    last = tmp_path / "short" / "checkpoints" / "last.ckpt"
    with_curves("train", "--resume-training", "--load", last, "--max-epochs", 3, "--patience", 9)
    assert_same_files(tmp_path / "short", tmp_path / "whole")


def test_patience_may_change(world: World, tmp_path: Path) -> None:
    """The validations without a better result before the checkpoint count, also if there was no patience."""
    options = ("--project-dir", tmp_path, "--learning-rate", 1e-12, "--max-epochs")
    assert run(*world.training(*options, 3, "--project", "run")) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    for patience, epochs in ((5, 6), (6, 7)):
        more = ("--max-epochs", 20, "--patience", patience)
        assert run("train", "--resume-training", "--load", last, *more) == 0
        assert torch.load(last, weights_only=True)["epoch"] == epochs - 1


def test_best_after_the_checkpoint_is_forgotten(world: World, tmp_path: Path) -> None:
    """A run that resumes before its best checkpoint, and ends before it, has no weights from after its end."""
    options = ("--project-dir", tmp_path, "--project", "run", "--max-steps")
    assert run(*world.training(*options, 3)) == 0
    folder = tmp_path / "run" / "checkpoints"
    early = shutil.copytree(folder, tmp_path / "early") / "last.ckpt"
    for path, score in (
        (early, 1.0),
        (folder / "last.ckpt", -1.0),
    ):  # no later validation is better, or the next one is
        contents, when = torch.load(path, weights_only=True), path.stat()
        contents["callbacks"]["RunCheckpoints"] |= {"best_score": score, "best_loss": -math.inf}
        torch.save(contents, path)
        os.utime(path, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert run("train", "--resume-training", "--load", folder / "last.ckpt", "--max-steps", 24) == 0
    assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] > 6
    shutil.copy2(early, folder / "last.ckpt")
    assert run("train", "--resume-training", "--load", folder / "last.ckpt", "--max-steps", 6) == 0
    assert torch.load(folder / "best.ckpt", weights_only=True)["global_step"] <= 6


def test_a_run_cut_by_max_steps_goes_on_to_the_same_end(world: World, tmp_path: Path) -> None:
    options = ("--project-dir", tmp_path, "--max-epochs", 2)
    assert run(*world.training(*options, "--project", "whole")) == 0
    assert run(*world.training(*options, "--project", "cut", "--max-steps", 7)) == 0
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", last, "--max-steps", -1) == 0
    assert same_weights(tmp_path / "whole" / "checkpoints" / "last.ckpt", last)


def test_the_checkpoint_is_read_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0
    last, reads, load = tmp_path / "run" / "checkpoints" / "last.ckpt", [], torch.load

    def counted(file, **options):
        reads.append(file)
        return load(file, **options)

    monkeypatch.setattr(torch, "load", counted)
    assert run("train", "--resume-training", "--load", last, "--max-steps", 2) == 0
    best = last.with_name("best.ckpt")
    assert reads == [last, best, best]  # the best one for its step at the start, and for its weights at the end


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_batch_start"])
def test_a_bug_is_no_damaged_state(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hook: str) -> None:
    assert run(*world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1)) == 0

    def bug(*_: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.setattr(SeedEachBatch, hook, bug)
    with pytest.raises(AttributeError, match="a bug"):
        run("train", "--resume-training", "--load", tmp_path / "run" / "checkpoints" / "last.ckpt", "--max-steps", 2)
