"""Merges LoRA into the weights of the base, W + scaling · B·A, one matrix at a time (Hu et al. 2021, §4.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from heterolora.adapt import heads
from heterolora.search_space import SearchSpace


def in_numbers(network: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Dequantises a network to `dtype`. Other networks are returned unchanged.

    The rounding of the quantisation is not undone.
    """
    if not getattr(network, "is_quantized", False):
        return network
    dtype = dtype or torch.float32
    return network.dequantize(dtype=dtype).to(dtype)


@torch.no_grad()
def fold(network: PreTrainedModel, space: SearchSpace) -> None:
    """Turns an adapted network into a plain one, in place. At most one matrix is copied at a time.

    The network must not be quantised, and no shortcut may be on. The sum is computed in float32 (float64 for a float64
    base) and rounded once to the dtype of the base. A classification head gets the same dtype.
    """
    if space.on("shortcut"):
        raise ValueError("shortcuts can't be folded into a base")
    for low_rank in space.of_kind("lora"):
        path = low_rank.element.module
        layer = network.get_submodule(path).base
        if low_rank.enabled:
            exact = torch.promote_types(layer.weight.dtype, torch.float32)
            delta = low_rank.B.to(exact) @ low_rank.A.to(exact)  # (out, in)
            layer.weight.copy_(delta.mul_(low_rank.scaling).add_(layer.weight))
        network.set_submodule(path, layer)
    for block in space.blocks:
        if hasattr(block, "shortcuts"):
            del block.shortcuts
    for head in heads(network):
        head.to(network.dtype)


def probe(network: PreTrainedModel) -> dict[str, Tensor]:
    """Returns a batch of random tokens for comparing two forms of a network."""
    vocabulary = network.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Returns the logits of a batch in evaluation mode, as float32 on the CPU."""
    on_device = {name: values.to(network.device) for name, values in batch.items()}
    return network.eval()(**on_device).logits.float().cpu()
