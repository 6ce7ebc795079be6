"""The bytes of the frozen base: whole, of a block, outside the blocks, and of the constants of a 4-bit base."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from heterolora.elements.search_space import SearchSpace
from model.quantize import is_quantized, nf4

_BLOCK, _NESTED_BLOCK = 64, 256  # weights that share a scale, and scales that share one, in bitsandbytes
_CODE, _NESTED_CODE, _OFFSET = 16, 256, 1  # float32 values of each quantised layer


@dataclass(frozen=True)
class Base:
    """Bytes.

    Attributes:
        whole: of all frozen tensors.
        block: of the largest block.
        outside: of what is in no block: embeddings, norms, and the head of a language model.
        gathered: what a process receives in the forward and the backward pass if the base is sharded. Blocks below all
            elements that are on have no backward pass. What is outside the blocks is gathered once.
        constants: of `whole`, the scales of a 4-bit base. They are not sharded.
    """

    whole: int
    block: int
    outside: int
    gathered: int
    constants: int


def packed_layers(network: nn.Module, quantize: str | None, precision: str) -> dict[str, torch.dtype]:
    """The layers that `--quantize nf4` loads in 4 bits -> the dtype in which they compute."""
    if quantize is None:
        return {}
    dtype = nf4(precision).bnb_4bit_compute_dtype
    linears = (name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    return {name: dtype for name in linears if is_quantized(name)}


def base_of(network: nn.Module, space: SearchSpace, packed: Iterable[str], precision: str) -> Base:
    """The tensors may be on the meta device."""
    trained = {p for low_rank in space for p in low_rank.parameters()}
    trained |= {p for p in network.parameters() if p.requires_grad}
    config = nf4(precision)
    in_4_bits = {network.get_parameter(f"{name}.weight") for name in packed}

    def constants(tensors: Iterable[Tensor]) -> int:
        return sum(nf4_constants(tensor.numel(), config) for tensor in tensors if tensor in in_4_bits)

    def size(tensors: Iterable[Tensor]) -> int:
        return sum(-(-t.numel() // 2) if t in in_4_bits else t.nbytes for t in set(tensors) - trained)

    blocks = [size(block.parameters()) for block in space.blocks]
    every = size(network.parameters())
    outside = every - sum(blocks)
    scales = constants(in_4_bits)
    gathered = outside + sum(blocks) + sum(blocks[space.frozen_blocks() :])
    whole = every + scales + size(network.buffers())
    return Base(whole, max(blocks), outside, gathered, scales)


def nf4_constants(weights: int, config: BitsAndBytesConfig) -> int:
    """The bytes that bitsandbytes stores for a layer besides half a byte a weight (QLoRA, Dettmers et al. 2023, §3)."""
    scales = -(-weights // _BLOCK)
    if not config.bnb_4bit_use_double_quant:
        return 4 * (scales + _CODE)
    return scales + 4 * (-(-scales // _NESTED_BLOCK) + _NESTED_CODE + _OFFSET + _CODE)
