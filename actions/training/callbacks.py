"""Small callbacks that make a run reproducible, end it and report its progress."""

from __future__ import annotations

import math
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks
from pytorch_lightning.callbacks import RichProgressBar
from rich import get_console
from rich.progress import ProgressColumn, TextColumn
from rich.table import Column

from actions.run.console import note, say
from actions.run.endings import end_with_this_process, terminate
from actions.training.baseline import majority
from actions.training.training_state import check_form
from heterolora.common.files import DISK_FAILURES, cannot_write
from model.lightning import connected, log_optimizer_steps, window_ends
from model.task.fine_tuning import task_of


class SeedEachBatch(pl.Callback):
    """Seeds each training batch with (seed, process, epoch, batch).

    So no random state has to be saved, and neither validation nor scoring changes the random numbers of later batches.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        sequence = np.random.SeedSequence([self.seed, trainer.global_rank, trainer.current_epoch, batch_idx])
        for_torch, for_python, for_numpy = (int(state) for state in sequence.generate_state(3))
        # `torch.manual_seed` looks for every kind of device, which takes longer than a small layer.
        torch.default_generator.manual_seed(for_torch)
        if (device := trainer.strategy.root_device).type != "cpu":
            torch.get_device_module(device).manual_seed(for_torch)
        random.seed(for_python)
        np.random.seed(for_numpy)


class CountOptimizerSteps(pl.Callback):
    """Loggers count optimizer steps."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        log_optimizer_steps(trainer)


class ValidateAfterWindows(pl.Callback):
    """Rounds the interval between validations up to whole accumulation windows.

    A checkpoint is saved after a validation, and a run can't be resumed inside a window.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        asked, window = trainer.val_check_interval, trainer.accumulate_grad_batches
        if stage != "fit" or str(asked) == "1.0":  # 1 is one batch
            return
        per_epoch = task_of(pl_module).train_batches()
        batches = max(1, int(per_epoch * asked)) if isinstance(asked, float) else asked
        trainer.val_check_interval = min(math.ceil(batches / window) * window, per_epoch)
        if trainer.val_check_interval != batches:
            note(
                f"--val-check-interval {asked}: validating every {trainer.val_check_interval} batches, "
                f"a multiple of --accumulate-grad-batches {window}"
            )


class LogLoss(pl.Callback):
    """Logs the training loss.

    Lightning would log it after the checkpoint of the same step, and a run that stops in between would lose it.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not window_ends(trainer):
            return
        if trainer.global_step % connected(trainer).log_every_n_steps == 0 or trainer.should_stop:
            figures = {"train/loss": float(task_of(pl_module).global_loss), "epoch": trainer.current_epoch}
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=trainer.global_step - 1)
                logger.save()


class EarlyStopping(callbacks.EarlyStopping):
    """Ends training after `patience` validations without a better result; None: never.

    A checkpoint always has the number of such validations, so that a resumed run may change the patience. A score that
    is not finite is no better result. It does not end the run, as it would by default. Weights that may not be the best
    ones, such as those with more parameters than the budget, are not counted.
    """

    def __init__(
        self, monitor: str, mode: str, patience: int | None, counts: Callable[[], bool] = lambda: True
    ) -> None:
        # By default Lightning checks at the end of an epoch if the interval equals 1.0, and so does that of one batch.
        super().__init__(
            monitor, mode=mode, patience=patience or sys.maxsize, check_finite=False, check_on_train_epoch_end=False
        )
        self._said, self._counts = False, counts

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_form(self.state_dict(), state_dict)
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._counts():
            return
        super().on_validation_end(trainer, pl_module)
        if self.wait_count >= self.patience and not self._said:
            self._said = True
            say(
                f"stopped at epoch {trainer.current_epoch}, step {trainer.global_step}: no better {self.monitor} than "
                f"{float(self.best_score):.4f} in {self.wait_count} validation{'s' if self.wait_count > 1 else ''} "
                f"(--patience {self.patience})"
            )


class WarnOfOneClass(pl.Callback):
    """Prints a note, once a run, if all predictions of a validation are of one class."""

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate, self._said = learning_rate, False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" or self._said:
            return
        task = task_of(pl_module)
        for split in task.validation_names:
            name = task.one_class.get(split)
            if name is not None:
                self._said = True
                note(
                    f"all predictions on {split} at step {trainer.global_step} are '{name}': the model does not "
                    f"distinguish the classes; try another --learning-rate (now {self.learning_rate:g}) or more epochs"
                )
                return


class StopAfter(pl.Callback):
    """Ends training at the end of the run, or after `early` steps or share of it, with a validation.

    Lightning's `max_steps` ends without a validation, and resumes incorrectly from the end of an epoch.
    """

    def __init__(self, early: int | float | None) -> None:
        self.early, self.steps = early, math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps = task_of(pl_module).total_steps()
        if self.early is not None:
            early = max(1, round(self.early * self.steps)) if isinstance(self.early, float) else self.early
            self.steps = min(self.steps, early)
        self._stop_if_due(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._stop_if_due(trainer)

    def _stop_if_due(self, trainer: pl.Trainer) -> None:
        if trainer.global_step >= self.steps:
            trainer.should_stop = True


_WIDE = 110  # columns of a terminal in which the bar and several figures are on one line


class EndTogether(pl.Callback):
    """When a process ends early, so do the processes that it started. A full disk is a UserError."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit" and threading.current_thread() is threading.main_thread():
            # Lightning's own handler runs a collective, which the other processes may not reach.
            signal.signal(signal.SIGTERM, terminate)

    on_test_start = on_predict_start = on_validation_start

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        end_with_this_process(trainer.strategy.launcher)
        if isinstance(exception, OSError) and exception.errno in DISK_FAILURES:  # loggers do not name their file
            raise cannot_write(exception.filename or trainer.default_root_dir, exception) from exception


class Progress(RichProgressBar):
    """Lightning's progress bar with the steps of the run, the training loss and a line for scoring.

    The loss is read here, because `log` would take milliseconds in every step, and only after an optimizer step,
    because reading makes the program wait for the GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loss = (0, 0.0)  # optimizer steps, and the loss of the last of them

    def configure_columns(self, trainer: pl.Trainer) -> list[ProgressColumn]:
        """Lightning's columns. In a narrow terminal the description and the bar are short, or rich breaks the line."""
        description, bar, *others = super().configure_columns(trainer)
        if get_console().width < _WIDE:
            description = TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=12))
            bar.bar_width = 6
        return [description, bar, *others]

    @property
    def total_train_batches(self) -> int | float:
        """The length of the bar. Lightning's is that of an epoch."""
        return task_of(self.trainer.lightning_module).total_steps()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress is not None and self.train_progress_bar_id is not None:  # Lightning starts again from 0
            self.progress.update(self.train_progress_bar_id, completed=trainer.global_step)
            self.refresh()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        figures = {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}
        if trainer.state.fn == "fit" and trainer.global_step > 0:
            if self._loss[0] != trainer.global_step:
                self._loss = (trainer.global_step, float(task_of(pl_module).global_loss))
            others = figures if self.progress is not None and self.progress.console.width >= _WIDE else {}
            figures = {"train/loss": self._loss[1], **others}
        return figures

    def track(self, items: Sequence[Any], what: str) -> Iterator[Any]:
        """Yield the items, and count them on a separate line below the training progress."""
        if self.progress is None:  # no terminal
            yield from items
            return
        line = self.progress.add_task(what, total=len(items))
        try:
            for item in items:
                yield item
                self.progress.advance(line)
                self.refresh()
        finally:
            self.progress.remove_task(line)


class SayValidations(pl.Callback):
    """Prints one line for each validation. The first one also has the share of the most frequent class."""

    def __init__(self) -> None:
        self._said = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        splits = task_of(pl_module).validation_names
        figures = [
            f"{name} {float(value):.4f}"
            for name, value in trainer.callback_metrics.items()
            if name.split("/")[0] in splits
        ]
        if not self._said:
            shares = {split: majority(connected(trainer).datamodule, split) for split in splits}
            figures += [f"most frequent class of {split} {share:.4f}" for split, share in shares.items() if share]
            self._said = True
        say(f"epoch {trainer.current_epoch}, step {trainer.global_step}: {', '.join(figures)}")
