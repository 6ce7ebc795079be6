"""Multiple choice: trained on the tokens of the right choice, measured by the choice that is most likely.

The score of a choice is its log-likelihood, the sum of the log-probabilities of its tokens after the prompt. The
normalised score is this sum divided by the number of the choice's characters. These are the scores of `acc` and
`acc_norm` in lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness, lm_eval/api/task.py).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from heterolora.common.checks import present
from heterolora.saliency.problem import Batch, Loss
from model.task.answers import Answer, answers_of
from model.task.language_model import LanguageModel, next_tokens
from model.task.rows import Answers


class MultipleChoice(LanguageModel):
    """Cross-entropy of the right choice, weighted by its tokens.

    A training batch has the right choice of each row. An evaluated batch has a sequence for each choice.
    """

    def loss(self, batch: Batch) -> Loss:
        """Return the loss of the right choices. Its `logits` are the scores (rows, choices) of an evaluated batch."""
        if "choices" not in batch:
            return super().loss(batch)
        every = present(super().loss(_sequences(batch)).each)  # (sequences,): the negative scores
        scores = pad_sequence((-every).split(batch["choices"].tolist()), batch_first=True, padding_value=-math.inf)
        each = every[_right(batch)]
        return Loss(each.sum(), _right_tokens(batch).sum(), scores, each)

    def predictions(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor]:
        kept = batch["weight"] > 0
        scores = present(loss.logits)
        normalised = scores / batch["characters"]
        picks = torch.stack([scores.argmax(-1), normalised.argmax(-1)], dim=-1)  # (rows, 2)
        return picks[kept], batch["answer"][kept]

    def answers(self, batch: Batch) -> list[Answer]:
        scores = present(self.loss(batch).logits).tolist()
        counts = batch["choices"].tolist()
        return answers_of(batch, scores=[tuple(row[:count]) for row, count in zip(scores, counts, strict=True)])

    def row_counts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Answers]:
        scores = present(loss.logits)
        return _right_tokens(batch), Answers(batch["answer"], scores.argmax(-1), scores)


TASK = MultipleChoice


def _sequences(batch: Batch) -> Batch:
    """The batch with a weight for each sequence."""
    return {**batch, "weight": batch["weight"].repeat_interleave(batch["choices"])}


def _right(batch: Batch) -> Tensor:
    """The sequence (rows,) of the right choice of each row."""
    return batch["choices"].cumsum(0) - batch["choices"] + batch["answer"]


def _right_tokens(batch: Batch) -> Tensor:
    """The number of target tokens (rows,) of the right choice of each row."""
    _, kept = next_tokens(_sequences(batch))
    return kept.sum(-1)[_right(batch)]
