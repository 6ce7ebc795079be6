"""`--hub-kernels`: layers compute with kernels of the hub, which the package `kernels` puts in their place."""

from __future__ import annotations

from typing import Any, Literal

import pytorch_lightning as pl

from heterolora.common.errors import UserError
from heterolora.common.outside import first_sentence
from model.task.fine_tuning import task_of


class HubKernels(pl.Callback):
    """Puts the kernels of training or of inference in place, once the network is on its device.

    transformers exchanges kernels in `train()` and `eval()`. After a validation, Lightning restores the mode of each
    module without them, so that training would go on with kernels of inference, which may have no backward pass.
    """

    def __init__(self) -> None:
        self._in_place = ""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._put(pl_module, "TRAINING")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._put(pl_module, "INFERENCE")

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._put(pl_module, "INFERENCE")

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._put(pl_module, "INFERENCE")

    def _put(self, pl_module: pl.LightningModule, kind: Literal["TRAINING", "INFERENCE"]) -> None:
        """Put kernels in place, if others are. Raises UserError if one cannot be loaded."""
        if kind == self._in_place:
            return
        from kernels import Mode

        try:
            task_of(pl_module).network.set_use_kernels(True, mode=Mode[kind])
        except Exception as error:
            found = f"the kernels of the hub cannot be loaded ({first_sentence(error)})"
            raise UserError(found, "load them once with access to the hub, or leave out --hub-kernels") from error
        self._in_place = kind
