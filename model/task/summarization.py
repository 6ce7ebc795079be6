"""Summarization by a causal model: trained on prompt and summary, measured by ROUGE on generated text."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from heterolora.saliency.problem import Batch, Loss
from model.task.causal_language_modeling import next_token_loss
from model.task.fine_tuning import FineTuning


class Summarization(FineTuning):
    """Cross-entropy on the summary's tokens; greedily generated text for the metrics.

    Args:
        tokenizer: decodes what is generated.
        max_new_tokens: longest summary to generate.
        others: see `FineTuning`.
    """

    def __init__(self, *, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, **others: Any) -> None:
        super().__init__(**others)
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens

    def loss(self, batch: Batch) -> Loss:
        return next_token_loss(self.logits(batch), batch)

    def predictions(self, batch: Batch, loss: Loss) -> tuple[list[str], list[str]]:
        written = self.write(batch)
        kept = (batch["weight"] > 0).tolist()
        return (
            [text for text, keep in zip(written, kept, strict=True) if keep],
            [text for text, keep in zip(batch["target"], kept, strict=True) if keep],
        )

    @torch.no_grad()
    def write(self, batch: Batch) -> list[str]:
        """Greedy continuations of the left-padded prompts."""
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
