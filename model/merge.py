"""Merges LoRA into the weights of the base, W + scaling · B·A, one matrix at a time (Hu et al. 2021, §4.1)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from heterolora.common.errors import UserError
from heterolora.elements import experts
from heterolora.elements.adapt import Placement, heads
from heterolora.elements.linear import is_transposed
from heterolora.elements.search_space import SearchSpace


def in_numbers(network: PreTrainedModel, dtype: torch.dtype | None) -> PreTrainedModel:
    """Dequantise a network to `dtype`. Other networks are returned unchanged.

    The rounding of the quantisation is not undone.
    """
    if not getattr(network, "is_quantized", False):
        return network
    dtype = dtype or torch.float32
    return network.dequantize(dtype=dtype).to(dtype)


def unwrap(network: PreTrainedModel, space: SearchSpace) -> frozenset[str]:
    """Take all elements out of an adapted network, in place. A classification head gets the dtype of the base.

    If there is an element outside of the blocks, the output layer gets a weight of its own, which may be that of the
    embedding before. Shortcuts are lost. Without training they add 0. Returns the places whose weight is (in, out).
    """
    for host in dict.fromkeys(low_rank.element.host for low_rank in space.of_kind("lora")):
        wrapped: Any = network.get_submodule(host)
        network.set_submodule(host, wrapped.base)
    for block in space.blocks:
        if hasattr(block, "shortcuts"):
            del block.shortcuts
    for head in heads(network):
        head.to(network.dtype)
    elements = [low_rank.element for low_rank in space.of_kind("lora")]
    if any(element.is_outside for element in elements):
        _untie(network)
    return frozenset(each.module for each in elements if _is_transposed(network.get_submodule(each.host)))


def check_untying(config: PretrainedConfig, planned: Placement) -> None:
    """Raise UserError if LoRA would have to be folded into a weight that is also another part's."""
    if config.is_encoder_decoder and config.tie_word_embeddings and any(e.is_outside for e in planned.elements):
        found = "the output layer has LoRA, and shares its weight with the embeddings of encoder and decoder"
        raise UserError(f"{found}: LoRA can't be folded into it", "use the adapter, which PEFT loads")


def _untie(network: PreTrainedModel) -> None:
    """Give the output layer a weight of its own if it has that of the embedding."""
    output, embedding = network.get_output_embeddings(), cast(nn.Embedding, network.get_input_embeddings())
    if output is None or output.weight is not embedding.weight:
        return
    output.weight = nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
    for config in (network.config, network.config.get_text_config()):
        config.tie_word_embeddings = False
    network.all_tied_weights_keys = network.get_expanded_tied_weights_keys(all_submodels=True)


def _is_transposed(host: nn.Module) -> bool:
    return isinstance(host, nn.Embedding) or is_transposed(host) or experts.is_transposed(host)


@torch.no_grad()
def fold(space: SearchSpace, weight_of: Callable[[str], Tensor], transposed: Collection[str] = ()) -> None:
    """Add every LoRA element that is on to the weight of its place, in place.

    The sum is computed in float32 (float64 for a float64 base) and rounded once to the dtype of the base. At most one
    matrix is copied at a time. The weights must not be quantised.

    Args:
        space: the elements.
        weight_of: name of a parameter, such as `model.layers.0.self_attn.q_proj.weight` -> its tensor (out, in) or
            (experts, out, in). It may be mapped from a file, which then gets the sum.
        transposed: the places whose weight is (in, out) or (experts, in, out).
    """
    for low_rank in space.on("lora"):
        weight = weight_of(low_rank.element.weight)
        if low_rank.element.module in transposed:
            weight = weight.mT  # a view
        weight.copy_(low_rank.matrix(torch.promote_types(weight.dtype, torch.float32)).add_(weight))


def probe(network: PreTrainedModel) -> dict[str, Tensor]:
    """Return a batch of random tokens for comparing two forms of a network."""
    vocabulary = network.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not network.config.is_encoder_decoder:
        return batch
    end = network.config.eos_token_id  # a classifier reads the last one of each row, and wants as many in every row
    ids[ids == end] = network.config.pad_token_id
    ids[:, -1] = end
    return {**batch, "decoder_input_ids": ids}


@torch.no_grad()
def logits(network: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Return the logits of a batch in evaluation mode, as float32 on the CPU."""
    on_device = {name: values.to(network.device) for name, values in batch.items()}
    return network.eval()(**on_device).logits.float().cpu()
