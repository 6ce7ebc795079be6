"""The result of a run as a plain Hugging Face folder: LoRA is folded into the base."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from actions.experiment import plan_elements, put_weights
from actions.resolve import Request
from heterolora.adapt import adapt
from heterolora.files import whole_folder
from model.checkpoint import Record
from model.load import load_base, load_config, load_tokenizer
from model.merge import fold, in_numbers, logits, probe


@dataclass(frozen=True)
class Merged:
    """A written folder, compared with the model before."""

    dtype: torch.dtype  # of the weights; the same as in the base's files
    files: int  # number of weight files
    error: float  # the largest difference of a logit to the model before, for a few random tokens
    largest: float  # the largest logit, for comparison


def write_merged(request: Request, output: Path, max_shard_size: str) -> Merged:
    """Write weights, configuration and tokenizer into `output`, completely or not at all.

    The request names a checkpoint or an adapter, whose model has no shortcuts. One model is in memory at a time: LoRA
    is folded in place, and the model is deleted before the files are read again. A quantised base is dequantised. A
    weight file is at most `max_shard_size` large, such as `5GB`.
    """
    config = load_config(request.base.name, request.spec)
    use_cache = config.use_cache
    tokenizer = load_tokenizer(request.base.name, config)
    network, batch, expected = _merged(request, config, tokenizer)
    network.config.use_cache = use_cache  # training turned it off
    kind, dtype = type(network), network.dtype
    with whole_folder(output) as folder:
        network.save_pretrained(folder, max_shard_size=max_shard_size)
        tokenizer.save_pretrained(folder)
        del network
        gc.collect()
        found = logits(kind.from_pretrained(folder, dtype="auto", trust_remote_code=False), batch)
        files = len(list(folder.glob("*.safetensors")))
    return Merged(dtype, files, float((found - expected).abs().max()), float(expected.abs().max()))


def _merged(
    request: Request, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, dict[str, torch.Tensor], torch.Tensor]:
    """(the plain network, a batch, the logits of the model before)."""
    options, dtype = request.options, config.dtype  # loading the base changes the configuration
    planned = plan_elements(request, config)
    # The base has the dtype of its files, or is quantised as in training.
    precision = None if options.quantize is None else options.devices.precision
    base = load_base(request.base, config, tokenizer, request.spec.task, precision, options.quantize)
    space = None if planned is None else adapt(base.network, planned)
    put_weights(request, Record(request.action, {}, request.base, base.sha256), base.network, space)
    batch = probe(base.network)
    expected = logits(base.network, batch)
    network = in_numbers(base.network, dtype)
    if space is not None:
        fold(network, space)
    return network, batch, expected
