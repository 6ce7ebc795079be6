"""A run whose numbers are no longer finite ends with one line and code 1, and keeps its last good checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from actions import train
from model.task.fine_tuning import FineTuning
from tests.world import World, run, run_apart, weights, write_lora

STEPS = 12  # of an epoch: 45 rows in batches of 4


class After(pl.Callback):
    """Calls `act` in one hook, once `steps` optimizer steps are done; only once unless it is told to go on."""

    def __init__(self, hook: str, steps: int, act: Callable[[FineTuning], None]) -> None:
        self.steps, self.act, self.done = steps, act, False
        setattr(self, hook, self._run)

    def _run(self, trainer: pl.Trainer, pl_module: FineTuning, *_: object) -> None:
        if not self.done and trainer.global_step == self.steps and trainer.state.fn == "fit":
            self.done = True
            self.act(pl_module)


@torch.no_grad()
def poison(task: FineTuning, value: float = math.nan) -> None:
    next(iter(task.space)).B[0, 0] = value


def poison_validation_loss(task: FineTuning) -> None:
    task.figures["validation"].loss.update(torch.tensor(math.nan), torch.tensor(1.0))


def install(patch: pytest.MonkeyPatch, callback: pl.Callback, first: bool = True) -> None:
    """Add a callback to the run: before all others, or only before the one that saves."""
    build = train.training_callbacks

    def with_callback(*arguments):
        callbacks = build(*arguments)
        return [callback, *callbacks] if first else [*callbacks[:-1], callback, callbacks[-1]]

    patch.setattr(train, "training_callbacks", with_callback)


def step_of(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def assert_ended(folder: Path, error: str, step: int, last: int) -> None:
    """One line that names the step; the last good checkpoint is that of step `last`."""
    assert error.count("error:") == 1
    assert f"at step {step} (epoch" in error
    assert "Traceback" not in error
    assert not (folder / "adapter").exists()
    assert not (folder / "metrics.json").exists()
    checkpoints = sorted((folder / "checkpoints").iterdir())
    for file in checkpoints:
        assert all(bool(tensor.isfinite().all()) for tensor in weights(file).values())
    assert step_of(folder / "checkpoints" / "last.ckpt") == last


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("hook", "first", "step", "last"),
    [
        ("on_train_batch_end", True, 5, 4),
        ("on_train_batch_end", False, 5, 4),  # after the check of the step
        ("on_train_batch_end", True, 2 * STEPS, 2 * STEPS - 1),  # the last step of the run
        ("on_validation_end", False, STEPS, STEPS - 1),
        ("on_train_epoch_end", False, 2 * STEPS, 2 * STEPS - 1),
    ],
)
def test_weights(world, tmp_path, capfd, monkeypatch, hook, first, step, last, value) -> None:
    install(monkeypatch, After(hook, step, lambda task: poison(task, value)), first)
    arguments = ("--max-epochs", 2, "--checkpoint-every-n-steps", 1, "--project-dir", tmp_path, "--project", "run")
    assert run(*world.training(*arguments)) == 1
    error = capfd.readouterr().err
    assert "a trained weight became NaN or infinite" in error
    assert_ended(tmp_path / "run", error, step, last)


def test_a_learning_rate_that_diverges_at_the_only_step(world: World, tmp_path: Path, capfd) -> None:
    """The loss of the step is that of the weights before it."""
    lora = write_lora(tmp_path / "lora.toml", lora_alpha=1e20)
    arguments = ("--lora-config", lora, "--learning-rate", 1e38, "--optimizer", "sgd", "--max-steps", 1)
    assert run(*world.training(*arguments, "--project-dir", tmp_path, "--project", "run")) == 1
    assert_ended(tmp_path / "run", capfd.readouterr().err, step=1, last=0)
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_validation_loss(world: World, tmp_path: Path, capfd, monkeypatch) -> None:
    """The second one: the first has made `best.ckpt`, which stays."""
    install(monkeypatch, After("on_validation_batch_end", 2 * STEPS, poison_validation_loss))
    arguments = ("--max-epochs", 3, "--project-dir", tmp_path, "--project", "run")
    assert run(*world.training(*arguments)) == 1
    error = capfd.readouterr().err
    assert "the loss on validation became nan" in error
    assert_ended(tmp_path / "run", error, step=2 * STEPS, last=STEPS)
    assert step_of(tmp_path / "run" / "checkpoints" / "best.ckpt") == STEPS


@pytest.mark.slow
def test_two_processes_end_together(world: World, tmp_path: Path) -> None:
    arguments = ("--learning-rate", 1e38, "--optimizer", "sgd", "--batch-size", 2, "--num-devices", 2)
    ended = run_apart(*world.training(*arguments, "--project-dir", tmp_path, "--project", "run"))
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("error:") == 1
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("patience", [(), ("--patience", 2)], ids=["", "patience"])
def test_a_first_score_that_is_no_number_blocks_no_later_one(world, tmp_path, monkeypatch, patience) -> None:
    def no_number(task: FineTuning) -> None:
        scores = task.figures["validation"].metrics
        compute = scores.compute

        def once() -> dict[str, torch.Tensor]:
            scores.compute = compute
            return {name: torch.tensor(math.nan) for name in compute()}

        scores.compute = once

    install(monkeypatch, After("on_validation_start", STEPS, no_number))
    arguments = ("--max-epochs", 2, "--project-dir", tmp_path, "--project", "run", *patience)
    assert run(*world.training(*arguments)) == 0
    assert step_of(tmp_path / "run" / "checkpoints" / "best.ckpt") == 2 * STEPS
