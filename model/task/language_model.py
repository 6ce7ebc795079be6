"""The loss of language models: cross-entropy of each target token given the tokens before it."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dataset.batching.targets import IGNORE
from heterolora.common.checks import present
from heterolora.saliency.problem import Batch, Loss
from model.task.answers import Answer, answers_of
from model.task.encoder_decoder import two_parts
from model.task.fine_tuning import FineTuning, TaskParts, network_inputs
from model.task.generation import Writer
from model.task.rows import Answers
from model.task.token_losses import Head


class LanguageModel(FineTuning):
    """A task that predicts tokens. Batches have `labels` (rows, tokens), `IGNORE` where there is no target."""

    def __init__(self, parts: TaskParts) -> None:
        super().__init__(parts)
        self.head = Head(self.network)
        self._writer: Writer | None = None

    @property
    def writer(self) -> Writer:
        """Generate text. From its first use on, the network has the settings of the program."""
        if self._writer is None:
            self._writer = Writer(self.network, present(self.parts.generation))
        return self._writer

    def loss(self, batch: Batch) -> Loss:
        inputs, targets, kept = self._example(batch)
        total, each = self.head.losses(inputs, targets, kept, batch["targets"])
        if each is None:
            return Loss(total, kept.sum())
        by_position = each.new_zeros(kept.shape).masked_scatter(kept, each)  # (rows, tokens)
        return Loss(total, kept.sum(), each=by_position.sum(-1))

    def row_counts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Answers | None]:
        _, _, kept = self._example(batch)
        return kept.sum(-1), None

    def _example(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The inputs of the network, the token to predict at each position, and whether it is a target."""
        if self.network.config.is_encoder_decoder:
            return two_parts(batch, self.network.config)
        return network_inputs(batch), *next_tokens(batch)

    def answers(self, batch: Batch) -> list[Answer]:
        return answers_of(batch, text=self.writer.write(batch["prompt_ids"], batch["prompt_mask"]))


def next_tokens(batch: Batch) -> tuple[Tensor, Tensor]:
    """The token that follows each position (rows, tokens), and whether it is a target. Rows of weight 0 have none."""
    labels = batch["labels"].masked_fill(batch["weight"].unsqueeze(-1) == 0, IGNORE)
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
    return targets, targets != IGNORE
