"""Collates encoded rows into one batch, padded to its longest row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from heterolora.saliency.problem import Batch

IGNORE = -100  # the label of tokens that the loss skips


@dataclass(frozen=True)
class Collator:
    """Makes a batch of R rows, a plain dict:

    | key | value |
    | --- | --- |
    | `input_ids`, `attention_mask` | (R, T) int64, padded on the right |
    | `token_type_ids` | (R, T) int64, if the tokenizer has them |
    | `labels` | (R,) int64 classes or float32 values; causal: (R, T) int64, -100 on padding and prompts |
    | `index` | (R,) int64, row of the split |
    | `weight` | (R,) float32, 1, or 0 for a filler row |
    | `prompt_ids`, `prompt_mask` | with `generate`: (R, P) int64, the prompts alone, padded on the left |
    | `target` | with `generate`: list of R reference texts |

    Attributes:
        tokenizer: pads the rows. It must have a pad token.
        generate: whether to add the keys that the generation of summaries needs.
    """

    tokenizer: PreTrainedTokenizerBase
    generate: bool = False

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        batch = dict(
            self._pad([{key: row[key] for key in ("input_ids", "token_type_ids") if key in row} for row in rows])
        )
        if "context" in rows[0]:
            batch["labels"] = _causal_labels(batch, [row["context"] for row in rows])
        else:
            kind = torch.float32 if isinstance(rows[0]["labels"], float) else torch.int64
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=kind)
        batch["index"] = torch.tensor([row["index"] for row in rows], dtype=torch.int64)
        batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        if self.generate:
            prompts = self._pad([{"input_ids": row["input_ids"][: row["context"]]} for row in rows], "left")
            batch["prompt_ids"], batch["prompt_mask"] = prompts["input_ids"], prompts["attention_mask"]
            batch["target"] = [row["target"] for row in rows]
        return batch

    def _pad(self, rows: list[dict[str, list[int]]], side: str = "right") -> BatchEncoding:
        return self.tokenizer.pad(rows, padding_side=side, return_attention_mask=True, return_tensors="pt")


def _causal_labels(batch: Batch, contexts: list[int]) -> Tensor:
    """Returns the ids (R, T), with -100 on padding and on the first `context` tokens of each row."""
    position = torch.arange(batch["input_ids"].shape[1])
    ignored = (position < torch.tensor(contexts)[:, None]) | (batch["attention_mask"] == 0)
    return batch["input_ids"].masked_fill(ignored, IGNORE)
