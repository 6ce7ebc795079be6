"""Collates encoded rows into one batch, padded to its longest row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchEncoding, PreTrainedTokenizerBase

from dataset.batching.packing import pack
from dataset.batching.targets import IGNORE, each_choice, has_targets, learned_spans
from heterolora.saliency.problem import Batch


@dataclass(frozen=True)
class Collator:
    """Makes a batch of R rows, a plain dict:

    | key | value |
    | --- | --- |
    | `input_ids`, `attention_mask` | (R, T) int64, padded on the right |
    | `token_type_ids` | (R, T) int64, if the tokenizer has them |
    | `labels` | if any: (R,) int64, or float32 (R,), or (R, C) if multi-label; causal: (R, T) int64, -100 for no loss |
    | `index` | (R,) int64, row of the split |
    | `weight` | (R,) float32, 1, or 0 for a filler row |
    | `prompt_ids`, `prompt_mask` | with `generate`: (R, P) int64, the prompts alone, padded on the left |
    | `target` | with `generate`: list of R reference texts, if there are any |
    | `choices`, `answer` | with `choices`: (R,) int64, the number of choices and the place of the right one |
    | `characters` | with `choices`: (R, C) float32, the length of each choice; 1 where a row has fewer than C |
    | `pieces` | with `pack_to`: list of R (pack, first token, tokens) |
    | `tokens` | int, tokens without padding |
    | `targets` | causal: int, tokens that have a loss, without filler rows |

    With `choices`, the tokens and labels are (S, T) instead of (R, T): a sequence for each choice of each row.
    The two numbers are no tensors: reading a number from a GPU would make the program wait.

    Attributes:
        tokenizer: pads the rows. It must have a pad token.
        generate: whether to add the keys that the generation of summaries needs.
        choices: whether to make a sequence of each choice, not of the right one only.
        pack_to: (causal models) the tokens of a pack. If given, the rows are joined; see `dataset.batching.packing`.
    """

    tokenizer: PreTrainedTokenizerBase
    generate: bool = False
    choices: bool = False
    pack_to: int | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        index = torch.tensor([row["index"] for row in rows], dtype=torch.int64)
        if self.pack_to is not None:
            return {**pack(rows, self.pack_to, self.tokenizer.pad_token_id), "index": index, **_numbers(rows)}
        sequences = rows
        if self.choices:
            sequences = [{**each, "weight": row["weight"]} for row in rows for each in each_choice(row)]
        batch = dict(
            self._pad([{key: row[key] for key in ("input_ids", "token_type_ids") if key in row} for row in sequences])
        )
        if has_targets(rows[0]):
            batch["labels"] = _causal_labels(batch, [learned_spans(row) for row in sequences])
        elif "labels" in rows[0]:
            kind = torch.int64 if isinstance(rows[0]["labels"], int) else torch.float32
            batch["labels"] = torch.tensor([row["labels"] for row in rows], dtype=kind)
        batch["index"] = index
        batch["weight"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        batch |= _numbers(sequences)
        if self.generate:
            prompts = self._pad([{"input_ids": row["input_ids"][: row["context"]]} for row in rows], "left")
            batch["prompt_ids"], batch["prompt_mask"] = prompts["input_ids"], prompts["attention_mask"]
            if "target" in rows[0]:
                batch["target"] = [row["target"] for row in rows]
        if self.choices:
            batch["choices"] = torch.tensor([len(row["choices"]) for row in rows])
            batch["answer"] = torch.tensor([row["answer"] for row in rows])
            characters = [torch.tensor(row["characters"], dtype=torch.float32) for row in rows]
            batch["characters"] = pad_sequence(characters, batch_first=True, padding_value=1.0)
        return batch

    def _pad(self, rows: list[dict[str, list[int]]], side: str = "right") -> BatchEncoding:
        return self.tokenizer.pad(rows, padding_side=side, return_attention_mask=True, return_tensors="pt")


def _numbers(rows: list[dict[str, Any]]) -> dict[str, int]:
    """Return the numbers of tokens and, for a causal model, of targets. The first token of a row is no target."""
    numbers = {"tokens": sum(len(row["input_ids"]) for row in rows)}
    if not has_targets(rows[0]):
        return numbers
    spans = (span for row in rows if row["weight"] for span in learned_spans(row))
    return {**numbers, "targets": sum(max(0, end - max(start, 1)) for start, end in spans)}


def _causal_labels(batch: Batch, spans: list[list[tuple[int, int]]]) -> Tensor:
    """Return the ids (R, T), with -100 outside the spans of each row."""
    labels = torch.full_like(batch["input_ids"], IGNORE)
    for row, of_row in enumerate(spans):
        for start, end in of_row:
            labels[row, start:end] = batch["input_ids"][row, start:end]
    return labels
