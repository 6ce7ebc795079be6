"""Classification of one or two texts, and regression where a data set has no label names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from model.task.fine_tuning import Batch, FineTuning, Losses


class Classification(FineTuning):
    """Cross-entropy over label ids (squared error for regression), weighted by rows."""

    def losses(self, batch: Batch) -> Losses:
        logits = self.logits(batch).float()  # (rows, labels)
        if self.spec.regression:
            each = F.mse_loss(logits.squeeze(-1), batch["labels"].float(), reduction="none")  # (rows,)
        else:
            each = F.cross_entropy(logits, batch["labels"], reduction="none")
        return Losses((each * batch["weight"]).sum(), batch["weight"].sum(), logits)

    def predictions(self, batch: Batch, losses: Losses) -> tuple[Tensor, Tensor]:
        kept = batch["weight"] > 0
        return losses.logits[kept], batch["labels"][kept]

    def official_pairs(self, first: Tensor, second: Tensor) -> tuple[Sequence[float], Sequence[float]]:
        predicted = first.squeeze(-1) if self.spec.regression else first.argmax(-1)
        return predicted.tolist(), second.tolist()
