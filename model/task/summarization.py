"""Summarization by a causal model: trained on prompt and summary, measured by ROUGE on generated text."""

from __future__ import annotations

from itertools import compress
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from heterolora.saliency.problem import Batch, Loss
from model.task.causal_language_modeling import next_token_loss, next_token_row_losses
from model.task.fine_tuning import FineTuning
from model.task.rows import RowLosses


class Summarization(FineTuning):
    """Cross-entropy on the summary's tokens; greedily generated text for the metrics.

    Args:
        tokenizer: decodes the generated tokens.
        max_new_tokens: the largest number of tokens to generate.
        others: see `FineTuning`.
    """

    def __init__(self, *, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, **others: Any) -> None:
        super().__init__(**others)
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens

    def loss(self, batch: Batch) -> Loss:
        return next_token_loss(self.logits(batch), batch)

    def predictions(self, batch: Batch, loss: Loss) -> tuple[list[str], list[str]]:
        kept = (batch["weight"] > 0).tolist()
        return list(compress(self.write(batch), kept)), list(compress(batch["target"], kept))

    def row_losses(self, batch: Batch, loss: Loss) -> RowLosses:
        return next_token_row_losses(loss.logits, batch)

    @torch.no_grad()
    def write(self, batch: Batch) -> list[str]:
        """Returns greedy continuations of the left-padded prompts."""
        prompts = batch["prompt_ids"]
        generated = self.network.generate(
            input_ids=prompts,
            attention_mask=batch["prompt_mask"],
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        texts = self.tokenizer.batch_decode(generated[:, prompts.shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]
