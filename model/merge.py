"""LoRA folded into the layers that it stands beside: W + scaling · B·A, one matrix at a time (Hu et al. 2021, §4.1)."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from heterolora.adapt import heads
from heterolora.search_space import SearchSpace

_ROWS, _TOKENS = 2, 16


def in_numbers(network: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """A quantised network with plain linear layers again, all of it in `dtype`; any other as it is.

    What quantisation rounded away stays away.
    """
    if not getattr(network, "is_quantized", False):
        return network
    dtype = dtype or torch.float32
    return network.dequantize(dtype=dtype).to(dtype)


@torch.no_grad()
def fold(network: PreTrainedModel, space: SearchSpace) -> None:
    """Turn an adapted network back into a plain one, in place: no second copy of any but the matrix at hand.

    The sum is taken in float32 (float64 for such a base) and rounded once to the dtype of the base. A classification
    head gets that dtype too.

    Args:
        network: the adapted network, not quantised.
        space: its search space; no shortcut is on.
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
    """A batch of random tokens to compare two forms of a network by."""
    vocabulary = network.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """What the network says of the batch in evaluation mode, float32, on the CPU."""
    on_device = {name: values.to(network.device) for name, values in batch.items()}
    return network.eval()(**on_device).logits.float().cpu()
