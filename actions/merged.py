"""A run's result as a plain Hugging Face folder: LoRA folded into the base."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from actions.resolve import Request
from actions.restore import restore
from heterolora.files import whole_folder
from model.load import load_config, load_tokenizer
from model.merge import fold, in_numbers, logits, probe


@dataclass(frozen=True)
class Merged:
    """What was written, read again and compared.

    Attributes:
        dtype: of the weights: that of the base's files.
        files: how many the weights are in.
        error: the largest difference of a logit to the model before, over a few random tokens.
        largest: the largest logit, for comparison.
    """

    dtype: torch.dtype
    files: int
    error: float
    largest: float


def write_merged(request: Request, output: Path, max_shard_size: str) -> Merged:
    """Write weights, configuration and tokenizer into `output`, whole or not at all.

    There is one model in memory at any time: LoRA is folded in place, and the model is let go before what was written
    is read again. A quantised base is dequantised.

    Args:
        request: names a checkpoint or an adapter; its model has no shortcuts.
        output: the folder.
        max_shard_size: of one file, such as `5GB`.
    """
    config = load_config(request.base.name, request.spec)
    use_cache, dtype = config.use_cache, config.dtype
    tokenizer = load_tokenizer(request.base.name, config)
    network, batch, expected = _merged(request, config, tokenizer, dtype)
    network.config.use_cache = use_cache  # generation wants it; training did not
    kind, dtype = type(network), network.dtype
    with whole_folder(output) as folder:
        network.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
        del network
        gc.collect()
        found = logits(kind.from_pretrained(folder, dtype="auto"), batch)
        files = len(list(folder.glob("*.safetensors")))
    return Merged(dtype, files, float((found - expected).abs().max()), float(expected.abs().max()))


def _merged(
    request: Request, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, dict[str, torch.Tensor], torch.Tensor]:
    """(the plain network, a batch, what the model said of it before)."""
    restored = restore(request, config, tokenizer)
    network = restored.network
    batch = probe(network)
    expected = logits(network, batch)
    network = in_numbers(network, dtype)
    if restored.space is not None:
        fold(network, restored.space)
    return network, batch, expected
