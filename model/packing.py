"""Whether a model computes the same for rows in one sequence as for each row alone, found by trying it."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig, PreTrainedModel

from dataset.batching.packing import pack
from heterolora.elements.task import Task
from model.tiny_copy import VOCABULARY, tiny_copy

_LENGTHS = (7, 4, 5)
_TOLERANCE = 1e-4  # of the largest logit


def packing_fails(config: PretrainedConfig, task: Task) -> str | None:
    """Why packed rows would not get what they get alone, tried on a tiny copy of the model. None if they would."""
    if config.is_encoder_decoder:
        return "it has an encoder, whose rows it does not join"
    for narrow in (True, False):
        network = tiny_copy(config, task, narrow)
        alone = None if network is None else _alone(network)
        if network is not None and alone is not None:
            return _differs(network, alone)
    return "a small copy of it could not be tried"


def _rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in _LENGTHS]


@torch.no_grad()
def _alone(network: PreTrainedModel) -> list[torch.Tensor] | None:
    """The logits (tokens, vocabulary) of each row. None if the network does not run."""
    try:
        return [_logits(network, torch.tensor([row])) for row in _rows()]
    except Exception:  # of a copy whose widths do not fit together
        return None


@torch.no_grad()
def _differs(network: PreTrainedModel, alone: list[torch.Tensor]) -> str | None:
    batch = pack([{"input_ids": row, "weight": 0.0} for row in _rows()], sum(_LENGTHS), pad=1)
    extra = {name: batch[name] for name in ("position_ids", "attention_mask")}
    try:
        packed = _logits(network, batch["input_ids"], **extra)
    except Exception as error:  # the network takes no such mask
        return f"it fails on packed rows ({type(error).__name__})"
    for (_, start, length), row in zip(batch["pieces"], alone, strict=True):
        if not (packed[start : start + length] - row).abs().max() <= _TOLERANCE * row.abs().max():
            return "a packed row gets other outputs than alone"
    return None


def _logits(network: PreTrainedModel, ids: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
    extra = extra or {"attention_mask": torch.ones_like(ids)}
    logits: torch.Tensor = network(input_ids=ids, **extra).logits[0]
    return logits
