"""Rows of a prompt and a response, for a network with an encoder and a decoder such as T5 and BART.

The encoder reads the prompt and an end-of-sequence token, as it did in pretraining. The decoder predicts the response.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dataset.batching.targets import IGNORE
from heterolora.saliency.problem import Batch


def two_parts(batch: Batch, config: Any) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Return the inputs of the network, the token that each position of the decoder predicts (rows, response), and
    whether it counts. Rows of weight 0 have none that counts.
    """
    is_response = batch["labels"] != IGNORE
    prompt = (batch["attention_mask"] > 0) & ~is_response
    first = prompt.sum(1)
    width = int(is_response.sum(1).max())
    targets = _from(first, batch["labels"], width, IGNORE)
    start = torch.full_like(targets[:, :1], config.decoder_start_token_id)
    before = torch.cat([start, targets[:, :-1].masked_fill(targets[:, :-1] == IGNORE, config.pad_token_id)], dim=1)
    ids, mask = encoder_inputs(batch["input_ids"], prompt, config)
    kept = (targets != IGNORE) & (batch["weight"].unsqueeze(1) > 0)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": before}, targets, kept


def encoder_inputs(ids: Tensor, mask: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Prompts, padded on any side, and their mask -> the ids with an end-of-sequence token, padded on the right, and
    their mask.
    """
    lengths = mask.long().sum(1)
    width = int(lengths.max())
    aligned = F.pad(_from(mask.long().argmax(1), ids, width, config.pad_token_id), (0, 1))
    places = torch.arange(width + 1, device=ids.device)
    ends = _first_of(config.eos_token_id)
    aligned = torch.where(places == lengths.unsqueeze(1), ends, aligned)
    seen = places <= lengths.unsqueeze(1)
    return aligned.masked_fill(~seen, config.pad_token_id), seen.long()


def _first_of(ends: int | list[int]) -> int:
    return ends if isinstance(ends, int) else ends[0]


def _from(first: Tensor, values: Tensor, width: int, fill: int) -> Tensor:
    """`width` values (rows, width) of each row from its column `first` on; `fill` beyond the last column."""
    places = first.unsqueeze(1) + torch.arange(width, device=values.device)
    last = values.shape[1] - 1
    return values.gather(1, places.clamp(max=last)).masked_fill(places > last, fill)
