"""Classification of one or two texts, also with several labels a row, and regression without label names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.spec import DatasetSpec
from heterolora.common.checks import present
from heterolora.saliency.problem import Batch, Loss
from model.task.answers import Answer, answers_of
from model.task.fine_tuning import FineTuning, network_inputs
from model.task.rows import Answers


class Classification(FineTuning):
    """Cross-entropy over label ids, weighted by rows.

    It is the squared error for regression, and the mean binary cross-entropy of the labels if a row may have several.
    """

    def logits(self, batch: Batch) -> Tensor:
        return self.network(**network_inputs(batch)).logits.float()  # (rows, labels)

    def loss(self, batch: Batch) -> Loss:
        return self._loss(batch, ())

    def training_loss(self, batch: Batch) -> Loss:
        return self._loss(batch, self.parts.class_weights)

    def _loss(self, batch: Batch, class_weights: Sequence[float]) -> Loss:
        logits = self.logits(batch)
        if self.spec.regression:
            each = F.mse_loss(logits.squeeze(-1), batch["labels"].float(), reduction="none")
        elif self.spec.multi_label:
            each = F.binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none").mean(-1)
        else:
            weights = logits.new_tensor(class_weights) if class_weights else None
            each = F.cross_entropy(logits, batch["labels"], weight=weights, reduction="none")
        return Loss((each * batch["weight"]).sum(), batch["weight"].sum(), logits, each.detach())

    def row_counts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Answers]:
        logits = present(loss.logits)
        if self.spec.regression:
            answers = Answers(batch["labels"], logits.squeeze(-1))
        elif self.spec.multi_label:
            answers = Answers(batch["labels"], (logits > 0).float())
        else:
            answers = Answers(batch["labels"], logits.argmax(-1), logits)
        return torch.ones_like(batch["weight"]), answers

    def predictions(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        kept = batch["weight"] > 0
        return present(loss.logits)[kept], batch["labels"][kept]

    def answers(self, batch: Batch) -> list[Answer]:
        logits = self.logits(batch)
        scores = logits if self.spec.regression else probabilities(logits, self.spec)
        return answers_of(batch, scores=[*map(tuple, scores.tolist())])

    def official_pairs(self, first: Tensor, second: Tensor) -> tuple[Sequence[float], Sequence[float]]:
        predicted = first.squeeze(-1) if self.spec.regression else first.argmax(-1)
        return predicted.tolist(), second.tolist()


def probabilities(logits: Tensor, spec: DatasetSpec) -> Tensor:
    """(…, classes): they add up to 1, unless a row may have several labels."""
    return logits.sigmoid() if spec.multi_label else logits.softmax(-1)


TASK = Classification
