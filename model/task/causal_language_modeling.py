"""Language modelling: predict the next token of packed text, or of the response to a prompt."""

from __future__ import annotations

from torch import Tensor

from heterolora.saliency.problem import Batch, Loss
from model.task.language_model import LanguageModel


class CausalLanguageModeling(LanguageModel):
    """Cross-entropy and perplexity, weighted by target tokens."""

    def predictions(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        return loss.total, loss.count


TASK = CausalLanguageModeling
