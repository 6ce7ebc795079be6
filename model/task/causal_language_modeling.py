"""Language modelling: the next token, over packed text or over the response to a prompt."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from model.task.fine_tuning import Batch, FineTuning, Losses

IGNORED = -100  # the label of tokens that carry no loss


def next_token_losses(logits: Tensor, batch: Batch) -> Losses:
    """Cross-entropy of each target token given those before it, summed.

    Args:
        logits: (rows, tokens, vocabulary).
        batch: `labels` (rows, tokens), `IGNORED` where there is no target, and `weight` (rows,).
    """
    labels = batch["labels"].masked_fill(batch["weight"].unsqueeze(-1) == 0, IGNORED)
    targets = labels[:, 1:].reshape(-1)
    predicted = logits[:, :-1].reshape(targets.numel(), -1).float()
    total = F.cross_entropy(predicted, targets, ignore_index=IGNORED, reduction="sum")
    return Losses(total, (targets != IGNORED).sum(), logits)


class CausalLanguageModeling(FineTuning):
    """Cross-entropy and perplexity, weighted by target tokens."""

    def losses(self, batch: Batch) -> Losses:
        return next_token_losses(self.logits(batch), batch)

    def predictions(self, batch: Batch, losses: Losses) -> tuple[Tensor, Tensor]:
        return losses.total, losses.count
