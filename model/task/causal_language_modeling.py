"""Language modelling: predict the next token of packed text, or of the response to a prompt."""

from __future__ import annotations

from torch import Tensor

from dataset.spec import DatasetSpec
from heterolora.saliency.problem import Batch, Loss
from model.task.fine_tuning import FineTuning
from model.task.language_model import LanguageModel
from model.task.multiple_choice import MultipleChoice


def class_of(spec: DatasetSpec) -> type[FineTuning]:
    return CausalLanguageModeling if spec.choices is None else MultipleChoice


class CausalLanguageModeling(LanguageModel):
    """Cross-entropy and perplexity, weighted by target tokens."""

    def predictions(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        return loss.total, loss.count
