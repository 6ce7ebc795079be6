"""The result of a run as a plain Hugging Face folder: LoRA is folded into the base."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, pipeline

from actions.command.request import Request
from actions.training.experiment import plan_elements, put_weights
from dataset.spec import DatasetSpec
from heterolora.common.files import whole_folder
from heterolora.elements.adapt import adapt
from heterolora.elements.search_space import SearchSpace
from model.checkpoint import ModelRecord
from model.load import load_base, load_config, load_tokenizer
from model.merge import check_untying, fold, in_numbers, logits, probe, unwrap
from model.task.classification import probabilities
from model.tensor_file import MappedTensors


@dataclass(frozen=True)
class Merged:
    """A written folder, compared with the model before."""

    dtype: torch.dtype  # of the weights
    files: int  # number of weight files
    error: float  # the largest difference of a logit to the model before, for a few random tokens
    largest: float  # the largest logit, for comparison
    in_pipeline: float | None  # largest difference of a score of transformers' pipeline; None for a language model


def write_merged(request: Request, output: Path, max_shard_size: int) -> Merged:
    """Write weights, configuration and tokenizer into `output`, completely or not at all.

    The request names a checkpoint or an adapter, whose model has no shortcuts. A base that is not quantised may be
    larger than the memory: its tensors stay mapped from its files, are written one after the other, and LoRA is folded
    into the written files, one matrix at a time. A quantised base is dequantised in memory. A weight file has at most
    `max_shard_size` bytes.
    """
    config = load_config(request.base.name, request.spec)
    use_cache, dtype = getattr(config, "use_cache", None), config.dtype  # loading the base changes the configuration
    assert not isinstance(dtype, str)  # transformers converts a name
    tokenizer = load_tokenizer(request.base.name, config)
    network, space = _trained(request, config, tokenizer)
    batch = probe(network)
    expected = logits(network, batch)
    network = in_numbers(network, dtype)
    if use_cache is not None:  # training turned it off
        network.config.use_cache = use_cache
    transposed = frozenset() if space is None else unwrap(network, space)
    kind, dtype = type(network), network.dtype
    with whole_folder(output) as folder:
        # The names of the modules, so that LoRA finds its places.
        network.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)
        tokenizer.save_pretrained(folder)
        del network
        gc.collect()
        if space is not None:
            fold(space, MappedTensors(folder).tensor, transposed)
        written = kind.from_pretrained(folder, dtype="auto", trust_remote_code=False, use_kernels=False)
        found = logits(written, batch)
        in_pipeline = _in_pipeline(request.spec, written, tokenizer) if request.spec.classifies else None
        files = len(list(folder.glob("*.safetensors")))
    return Merged(dtype, files, float((found - expected).abs().max()), float(expected.abs().max()), in_pipeline)


def _in_pipeline(spec: DatasetSpec, network: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """The largest difference between a score of transformers' pipeline and what this program predicts for a text."""
    text = "a"
    encoded = dict(tokenizer(text, return_tensors="pt"))
    own = logits(network, encoded)[0]
    labels: Any = network.config.id2label  # number of a class -> its name
    names = spec.labels or (labels[0],)
    scores = dict(zip(names, (own if spec.regression else probabilities(own, spec)).tolist(), strict=True))
    kind: Any = pipeline  # its types know no `top_k=None`, which means all classes
    pipe = kind("text-classification", model=network, tokenizer=tokenizer, top_k=None, device=network.device)
    (found,) = pipe([text])
    return max(abs(each["score"] - scores[each["label"]]) for each in found)


def _trained(
    request: Request, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, SearchSpace | None]:
    """The model that the request names, and its elements."""
    options = request.options
    planned = plan_elements(request, config)
    if planned is not None:
        check_untying(config, planned)
    # A frozen base has the dtype of its files. Quantised or trained weights are as in training.
    frozen = planned is not None and options.quantize is None
    precision = None if frozen else options.devices.precision
    base = load_base(request.base, config, tokenizer, request.spec.task, precision, options.quantize)
    space = None if planned is None else adapt(base.network, planned)
    put_weights(request, ModelRecord(request.action, {}, request.base, base.sha256), base.network, space)
    return base.network, space
