"""Ends a run whose numbers are no longer finite, before its weights are saved."""

from __future__ import annotations

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from heterolora.common.distributed import gathered
from heterolora.common.errors import DivergenceError
from model.lightning import window_ends
from model.task.fine_tuning import task_of

BAD_WEIGHTS = "a trained weight became NaN or infinite"


class StopOnNaN(pl.Callback):
    """Raises DivergenceError if the loss of a step, the weights after it or a validation loss is NaN or infinite.

    All processes have the same losses and weights, so all of them raise it.
    """

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if not window_ends(trainer):
            return
        loss = task_of(pl_module).global_loss
        if not bool(torch.isfinite(loss) & _finite_weights(trainer)):  # one transfer from the device for both
            what = BAD_WEIGHTS if math.isfinite(loss) else f"the training loss became {float(loss)}"
            raise _diverged(trainer, what)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        for split in task_of(pl_module).validation_names:
            loss = float(trainer.callback_metrics[f"{split}/loss"])
            if not math.isfinite(loss):
                raise _diverged(trainer, f"the loss on {split} became {loss}")


def check_finite_weights(trainer: pl.Trainer) -> None:
    """Raise DivergenceError on every process if a trained weight of any process is NaN or infinite."""
    if not trainer.strategy.reduce_boolean_decision(bool(_finite_weights(trainer)), all=True):
        raise _diverged(trainer, BAD_WEIGHTS)


def _finite_weights(trainer: pl.Trainer) -> Tensor:
    weights = [weight.detach() for group in trainer.optimizers[0].param_groups for weight in group["params"]]
    return gathered(get_total_norm(weights, math.inf)).isfinite()  # the largest absolute value, which NaN makes NaN


def _diverged(trainer: pl.Trainer, what: str) -> DivergenceError:
    return DivergenceError(
        f"{what} at step {trainer.global_step} (epoch {trainer.current_epoch})",
        "try a lower --learning-rate, a lower --gradient-clip-val or another --precision; "
        "the run's checkpoints are older and can be used",
    )
