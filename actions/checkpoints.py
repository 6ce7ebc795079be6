"""When a run is saved, and how: whole or not at all, and only where it can be continued exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actions.console import say
from heterolora.errors import UserError
from model.checkpoint import read_checkpoint
from model.task.fine_tuning import FineTuning


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, and reads tensors and plain values only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        unfinished = f"{path}.tmp"
        super().save_checkpoint(checkpoint, unfinished, storage_options)
        os.replace(unfinished, path)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return read_checkpoint(Path(path))


class RunCheckpoints(Checkpoint):
    """Keeps `best.ckpt` and `last.ckpt`, and leaves cleanly when the job is told to go (SIGTERM).

    Lightning's own ModelCheckpoint also saves inside accumulation windows and before a validation that falls on the
    same batch; a run continued from there differs from one that was never stopped. Here a save waits until the window
    has ended and whatever else is due on that batch is done.

    Args:
        folder: where the files go.
        monitor: the logged metric that decides what is best.
        mode: `max` or `min`.
        every_n_steps: optimizer steps between two saves of `last.ckpt`, besides the end of each epoch.
        requeue: put the job back into SLURM's queue when it has to leave.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, every_n_steps: int | None, requeue: bool) -> None:
        self.folder, self.monitor, self.mode = folder, monitor, mode
        self.every_n_steps, self.requeue = every_n_steps, requeue
        self.best_score: float | None = None
        self._due: set[str] = set()
        self._told_to_leave = False

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_score = state["best_score"]

    # ---- when

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.folder = trainer.strategy.broadcast(self.folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler stops without saving; it puts the original one back when the run is over.
            signal.signal(signal.SIGTERM, self._on_signal)
            if self.requeue:
                signal.signal(signal.SIGUSR1, self._on_signal)  # what `sbatch --signal=USR1@90` sends ahead of time
        if trainer.ckpt_path is None:
            self._due.add("last")  # something to resume from exists before the first step
            self._save_due(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            return
        if trainer.should_stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._due.add("last")
        validates_next = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        if not (validates_next or loop._num_ready_batches_reached()):
            self._window_is_over(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = float(trainer.callback_metrics[self.monitor])
        if self.best_score is None or (score > self.best_score if self.mode == "max" else score < self.best_score):
            self.best_score = score
            self._due.add("best")
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():
            self._save_due(trainer, only="best")  # later the weights are others
        elif not loop._num_ready_batches_reached():
            self._window_is_over(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.fit_loop.epoch_loop._num_ready_batches_reached():  # else the run stops inside the epoch
            self._due.add("last")
            self._window_is_over(trainer)

    def _window_is_over(self, trainer: pl.Trainer) -> None:
        leaving = trainer.strategy.reduce_boolean_decision(self._told_to_leave, all=False)
        if leaving:
            self._due.add("last")
        self._save_due(trainer)
        if leaving:
            raise SIGTERMException

    def _on_signal(self, *_: Any) -> None:
        self._told_to_leave = True

    def on_exception(self, trainer: pl.Trainer, pl_module: FineTuning, exception: BaseException) -> None:
        if not isinstance(exception, UserError):
            action = pl_module.record.action
            say(f"stopped; to go on: python -m main {action} --resume-training --load {self.last}")
        job = os.environ.get("SLURM_JOB_ID")
        if isinstance(exception, SIGTERMException) and self.requeue and job and trainer.is_global_zero:
            subprocess.run(["scontrol", "requeue", job], check=True)

    # ---- how

    def _save_due(self, trainer: pl.Trainer, only: str | None = None) -> None:
        for name in ("best", "last"):
            if name in self._due and only in (None, name):
                self._due.discard(name)
                trainer.save_checkpoint(self.folder / f"{name}.ckpt")
