"""Classification of one or two texts, and regression where a data set has no label names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heterolora.saliency.problem import Batch, Loss
from model.task.fine_tuning import FineTuning
from model.task.rows import RowLosses


class Classification(FineTuning):
    """Cross-entropy over label ids (squared error for regression), weighted by rows."""

    def loss(self, batch: Batch) -> Loss:
        logits = self.logits(batch).float()  # (rows, labels)
        each = self._each(logits, batch)
        return Loss((each * batch["weight"]).sum(), batch["weight"].sum(), logits)

    def _each(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of each row (rows,)."""
        if self.spec.regression:
            return F.mse_loss(logits.squeeze(-1), batch["labels"].float(), reduction="none")
        return F.cross_entropy(logits, batch["labels"], reduction="none")

    def row_losses(self, batch: Batch, loss: Loss) -> RowLosses:
        correct = None if self.spec.regression else loss.logits.argmax(-1) == batch["labels"]
        each = self._each(loss.logits, batch)
        return RowLosses(each, torch.ones_like(each), correct)

    def predictions(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        kept = batch["weight"] > 0
        return loss.logits[kept], batch["labels"][kept]

    def official_pairs(self, first: Tensor, second: Tensor) -> tuple[Sequence[float], Sequence[float]]:
        predicted = first.squeeze(-1) if self.spec.regression else first.argmax(-1)
        return predicted.tolist(), second.tolist()
