"""When and how a run is saved: atomically, and only at points where it can be resumed exactly."""

from __future__ import annotations

import math
import shlex
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Checkpoint as CheckpointCallback
from pytorch_lightning.utilities.exceptions import SIGTERMException

from actions.run.console import say
from actions.run.requeue import requeue, requeues
from actions.run.run_folder import CHECKPOINTS, LOGS, Run, claim
from actions.training.health import check_finite_weights
from heterolora.common.errors import DivergenceError, UserError
from heterolora.common.files import whole
from model.checkpoint import Checkpoint, read_checkpoint
from model.lightning import epoch_ends, validation_follows, window_ends
from model.task.fine_tuning import FineTuning, task_of
from model.task.rows import RowResult
from options.run import RunOptions


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes completely or not at all, beside the file. Reads tensors and plain values only.

    Lightning would write a copy into the folder for temporary files first.

    `resumed` is the checkpoint of a resumed run. It is in memory already, so its file is not read again.
    """

    def __init__(self, resumed: Checkpoint | None = None) -> None:
        super().__init__()
        self.resumed = resumed

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        # Given a path, torch would report a full disk without its reason.
        with whole(path) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        resumed, self.resumed = self.resumed, None
        return (resumed or read_checkpoint(Path(path))).contents


@dataclass(frozen=True)
class Validated:
    """What a validation during training found: metrics of each split; `predicted`, `rows`, `confusion` of the task."""

    metrics: Mapping[str, Mapping[str, float]]
    predicted: list[Any]
    rows: list[RowResult]
    confusion: Mapping[str, list[list[Any]]]

    @classmethod
    def of(cls, trainer: pl.Trainer, task: FineTuning) -> Validated:
        return cls(by_split(trainer, task.validation_names), task.predicted, task.rows, dict(task.confusion))


def by_split(trainer: pl.Trainer, splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """The last metrics of each split, by name."""
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        split: {name.removeprefix(f"{split}/"): value for name, value in logged.items() if name.startswith(f"{split}/")}
        for split in splits
    }


class RunCheckpoints(CheckpointCallback):
    """Keeps `best.ckpt` and `last.ckpt`, and stops cleanly on SIGTERM.

    Lightning's ModelCheckpoint also saves inside accumulation windows, and before a validation on the same batch. A run
    resumed from such a checkpoint differs from an uninterrupted one. This callback saves after the window and the
    validation. Weights that are NaN or infinite end the run and are not saved.

    Args:
        run: the run; the processes get that of the first one.
        monitor: the logged metric that selects the best checkpoint. Of equal values, the lower validation loss does.
        mode: `max` or `min`.
        options: `checkpoint_every_n_steps`, besides the end of each epoch, and `auto_requeue`.
        may_be_best: whether the weights of the moment may be the best ones.

    `validated` holds what this process has found of the weights in `best.ckpt` and `last.ckpt`, and `in_memory` the
    files whose weights the network has.
    """

    def __init__(
        self, run: Run, monitor: str, mode: str, options: RunOptions, may_be_best: Callable[[], bool] = lambda: True
    ) -> None:
        self.run, self.monitor, self.mode, self.may_be_best = run, monitor, mode, may_be_best
        self.every_n_steps, self.requeue = options.checkpoint_every_n_steps, requeues(options)
        self.best_score: float | None = None
        self.best_loss = -math.inf  # validation loss of the best checkpoint
        self.validated: dict[Path, Validated] = {}
        self.in_memory: set[Path] = set()
        self._due: set[str] = set()
        self._signalled = False
        self._watched: Path | None = None  # the folder of the curves, while it is there

    @property
    def folder(self) -> Path:
        return self.run.folder / CHECKPOINTS

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_loss": self.best_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        score = state["best_score"]
        self.best_score = score if score is None or math.isfinite(score) else None
        self.best_loss = float(state.get("best_loss", -math.inf))  # older versions kept the earliest of equal scores

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.run = trainer.strategy.broadcast(self.run)
        task = task_of(pl_module)
        task.record = replace(task.record, run=self.run.id)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
        if resumed is not None and not trainer.strategy.broadcast(self._has_best_before(trainer.global_step)):
            self.best_score = None
        curves = self.run.folder / LOGS
        self._watched = curves if trainer.loggers and curves.is_dir() else None
        if threading.current_thread() is threading.main_thread():
            # Lightning's own handler stops without saving. Lightning restores the original handler after the run.
            signal.signal(signal.SIGTERM, self._on_signal)
            if self.requeue:
                signal.signal(signal.SIGUSR1, self._on_signal)  # sent by `sbatch --signal=USR1@90`
        if resumed is None or resumed.parent != self.folder.resolve():
            self._due.add("last")  # so that a run can be resumed before its first step
            self._save_due(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.in_memory.clear()
        self.validated.pop(self.last, None)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not window_ends(trainer):
            return
        if trainer.should_stop or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            self._due.add("last")
        if not (validation_follows(trainer) or epoch_ends(trainer)):
            self._window_is_over(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = float(trainer.callback_metrics[self.monitor])
        loss = float(trainer.callback_metrics[f"{self.monitor.rpartition('/')[0]}/loss"])
        self.validated[self.last] = Validated.of(trainer, task_of(pl_module))
        if math.isfinite(score) and self.may_be_best() and self._is_better(score, loss):
            self.best_score, self.best_loss = score, loss
            self.validated[self.best] = self.validated[self.last]
            self._due.add("best")
        if trainer.should_stop:
            self._due.add("last")
        if not epoch_ends(trainer):
            self._window_is_over(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if epoch_ends(trainer):  # otherwise the run stops inside the epoch
            self._due.add("last")
            self._window_is_over(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._is_signalled(trainer):  # during the last save
            raise SIGTERMException

    def _is_better(self, score: float, loss: float) -> bool:
        best = self.best_score
        if best is None or score == best:
            return best is None or loss < self.best_loss
        return score > best if self.mode == "max" else score < best

    def _window_is_over(self, trainer: pl.Trainer) -> None:
        gone = self._watched is not None and not self._watched.is_dir()
        self._signalled |= gone
        stopping = self._is_signalled(trainer)
        if stopping:
            self._due.add("last")
        self._save_due(trainer)
        if gone:
            again = f"the weights are saved, continue with --resume-training --load {shlex.quote(str(self.last))}"
            raise UserError(f"{self._watched} was deleted during training", again)
        if stopping:
            raise SIGTERMException

    def _is_signalled(self, trainer: pl.Trainer) -> bool:
        """Whether any process has received a signal."""
        return trainer.strategy.reduce_boolean_decision(self._signalled, all=False)

    def _on_signal(self, *_: Any) -> None:
        self._signalled = True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, UserError | DivergenceError | OSError) and self.last.is_file():
            action = task_of(pl_module).record.action
            last = shlex.quote(str(self.last))
            say(f"stopped; to continue: python -m main {action} --resume-training --load {last}")
        if isinstance(exception, SIGTERMException) and self.requeue:
            requeue()
            trainer.strategy.barrier()  # SLURM may kill the other processes when one has ended

    def _has_best_before(self, step: int) -> bool:
        """Whether the folder has the best checkpoint of the run up to the resumed one, which was saved at `step`.

        It has not if the run continues in a new folder, or from an older checkpoint than its best one.
        """
        return self.best.is_file() and read_checkpoint(self.best).step <= step

    def _save_due(self, trainer: pl.Trainer) -> None:
        if self._due:
            check_finite_weights(trainer)
            for logger in trainer.loggers:
                logger.save()  # the resumed run continues the curves from here
        for name in ("best", "last"):
            if name in self._due:
                self._due.discard(name)
                trainer.save_checkpoint(self.folder / f"{name}.ckpt")
                self.in_memory.add(self.folder / f"{name}.ckpt")
                if name == "last":
                    claim(self.run)
