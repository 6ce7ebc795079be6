"""Language modelling: predict the next token of packed text, or of the response to a prompt."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from heterolora.saliency.problem import Batch, Loss
from model.task.fine_tuning import FineTuning
from model.task.rows import RowLosses

IGNORED = -100  # the label of tokens without loss


def next_token_loss(logits: Tensor, batch: Batch) -> Loss:
    """Cross-entropy of each target token given the tokens before it, summed.

    Args:
        logits: (rows, tokens, vocabulary).
        batch: `labels` (rows, tokens), `IGNORED` where there is no target, and `weight` (rows,).
    """
    predicted, targets = _aligned(logits, batch)
    total = F.cross_entropy(predicted, targets, ignore_index=IGNORED, reduction="sum")
    return Loss(total, (targets != IGNORED).sum(), logits)


def next_token_row_losses(logits: Tensor, batch: Batch) -> RowLosses:
    """The same loss, summed over the target tokens of each row."""
    predicted, targets = _aligned(logits, batch)
    each = F.cross_entropy(predicted, targets, ignore_index=IGNORED, reduction="none")
    rows = len(batch["labels"])
    return RowLosses(each.view(rows, -1).sum(-1), (targets != IGNORED).view(rows, -1).sum(-1))


def _aligned(logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits (rows · (tokens − 1), vocabulary), and the token that follows each position (rows · (tokens − 1),)."""
    labels = batch["labels"].masked_fill(batch["weight"].unsqueeze(-1) == 0, IGNORED)
    targets = labels[:, 1:].reshape(-1)
    return logits[:, :-1].reshape(targets.numel(), -1).float(), targets


class CausalLanguageModeling(FineTuning):
    """Cross-entropy and perplexity, weighted by target tokens."""

    def loss(self, batch: Batch) -> Loss:
        return next_token_loss(self.logits(batch), batch)

    def predictions(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        return loss.total, loss.count

    def row_losses(self, batch: Batch, loss: Loss) -> RowLosses:
        return next_token_row_losses(loss.logits, batch)
