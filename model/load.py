"""Configuration, tokenizer and weights of a base model, from a hub name or a folder."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import model.family as families
from dataset.spec import DatasetSpec
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.common.outside import reading
from heterolora.elements.adapt import heads, in_head
from heterolora.elements.found import positions_after_padding
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.shortcut import Carry
from heterolora.elements.task import TASKS, Task
from model.base_config import check_files, check_size, read_config, where_from
from model.base_digest import KeptDigest
from model.base_family import check_task
from model.checkpoint import BaseSource, check_fit, read_state_dict
from model.quantize import check_layers, loading_arguments, put_nf4_layers
from model.skeleton import auto_class, skeleton, skeleton_of_base
from model.tensor_file import check_finite, digest_of

_NUMBER = re.compile(r"\.\d+(?=\.)")  # of a block, in the name of a weight
_DTYPES = {"64": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """A base model, before anything is added to it.

    Attributes:
        untrained_head: whether its classification head is newly initialised.
        sha256: hash (hex) of all tensors except the head, as in the files or as drawn from the seed.
    """

    network: PreTrainedModel
    untrained_head: bool
    sha256: str


def load_config(source: str, spec: DatasetSpec, attention: str | None = None) -> PretrainedConfig:
    """Return the configuration of `source`, with the data set's labels for classification.

    `attention` is `--attention`; by default transformers chooses. Raises UserError if it cannot be read, or if models
    of its family cannot do the task.
    """
    labels: dict[str, Any] = {}
    if spec.classifies:  # the pipelines of transformers choose the function of their scores by the kind of problem
        one_or_several = "multi_label_classification" if spec.multi_label else "single_label_classification"
        problem = "regression" if spec.regression else one_or_several
        labels = {"num_labels": spec.num_labels, "problem_type": problem}
    if spec.classifies and spec.labels:
        labels["id2label"] = dict(enumerate(spec.labels))
        labels["label2id"] = {name: index for index, name in enumerate(spec.labels)}
    config = read_config(source, **labels, attn_implementation=attention)
    check_task(config, spec.task)
    if attention == "flash_attention_2":
        _check_flash_attention(config, spec.task)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"'{source}' is quantised already", "give the unquantised model, and --quantize")
    return config


def _check_flash_attention(config: PretrainedConfig, task: Task) -> None:
    """Raise UserError if transformers would put a kernel of the hub in place of flash attention, as for gpt-oss."""
    plain = copy.deepcopy(config)
    plain._attn_implementation = "eager"
    compatible = getattr(skeleton(plain, task), "_compatible_flash_implementations", None)
    if compatible is not None and "flash_attention_2" not in compatible:
        found = f"--attention flash_attention_2 would download and run {compatible[0]} for this model"
        raise UserError(found, "use --attention sdpa")


def load_tokenizer(source: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Return the tokenizer of `source`, with a pad token and the inputs that the model takes."""
    if os.path.isdir(source):
        check_files(Path(source))
    with reading("the tokenizer of", source, where_from(source)):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        unknown = tokenizer.unk_token
        if tokenizer.is_fast and unknown is not None and unknown not in tokenizer.get_vocab():
            # Transformers would ask for the id of its unknown token without end.
            raise ValueError(f"the unknown token {unknown!r} is not in the vocabulary")
        trial = tokenizer("a", "b")["input_ids"]
        size = 1 + max(*trial, *tokenizer.get_vocab().values(), len(tokenizer) - 1)
        if tokenizer.model_max_length < 1 or tokenizer.model_max_length != int(tokenizer.model_max_length):
            raise ValueError(f"model_max_length is {tokenizer.model_max_length}")
        tokenizer.model_max_length = int(tokenizer.model_max_length)
        if tokenizer.pad_token is not None:  # as batches are padded
            rows = [{"input_ids": trial}, {"input_ids": [*trial, *trial]}]
            tokenizer.pad(rows, padding_side="right", return_attention_mask=True, return_tensors="pt")
    if tokenizer.pad_token is None:
        raise UserError(
            f"the tokenizer of '{source}' has no token to pad with", "give one with a pad, eos or unk token"
        )
    if size > (vocabulary := config.get_text_config().vocab_size):
        raise UserError(
            f"the tokenizer of '{source}' has {size} tokens, its model {vocabulary}",
            "give a folder whose tokenizer and model belong together",
        )
    if getattr(config, "type_vocab_size", 0) <= 1:  # generic tokenizers give token types to models that have none
        tokenizer.model_input_names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    return tokenizer


def length_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the longest input, in tokens, that the positions of the model allow. None if there is no limit."""
    limits = [tokenizer.model_max_length]
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is not None:
        after_padding = positions_after_padding(skeleton_of_base(config))
        limits.append(positions - (tokenizer.pad_token_id + 1 if after_padding else 0))
    limit = min(limits)
    return limit if limit < 10**9 else None  # tokenizers write "no limit" as a huge number


def base_dtype(precision: str) -> torch.dtype:
    """Return the dtype of a base: float32, whatever its files have, unless the precision is a `-true` kind."""
    return _DTYPES.get(precision, torch.float32)


def cast(parameters: Iterable[Tensor], dtype: torch.dtype) -> None:
    """Cast parameters in place, as `from_pretrained` does. Buffers stay: rotary frequencies need float32."""
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def load_base(
    source: BaseSource,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    precision: str | None,
    quantize: str | None = None,
    sharded: bool = False,
) -> Base:
    """Load a base model in the dtype of `precision`, or quantised on the GPU of this process. Nothing is frozen yet.

    If it will be sharded, its tensors stay mapped from the files, in their dtype, except the head. Then its layers are
    quantised when it is sharded.

    Args:
        source: its origin. A base to quantise needs files.
        task: determines the head.
        precision: `--precision`. None keeps the dtype of the files, for a base that is not quantised.
        quantize: `--quantize`; see `model.quantize`.

    Raises UserError if the files cannot be read, or lack weights of the architecture other than the head. The head of a
    model without a table of its family is all that is outside of the encoder.
    """
    auto = auto_class(task, config)
    config.pad_token_id = tokenizer.pad_token_id  # decoders find the last token of a row with it
    if hasattr(config, "use_cache"):
        config.use_cache = False  # training and scoring do not reuse keys and values
    if source.pretrained and source.state_file is None:
        check_size(empty := skeleton(config, task), source.name, from_files=True)
        if quantize is not None:
            check_layers(empty, quantize, source.name)
    if quantize is not None and not sharded:
        return _load_quantized(auto, source, config, present(precision), quantize)
    torch.manual_seed(source.seed)
    kept = KeptDigest(source.name) if source.pretrained and source.state_file is None else None
    if kept is not None:
        network, untrained_head = _from_files(auto, source.name, config, dtype="auto")
    else:
        config.dtype = torch.float32
        check_size(skeleton(config, task), source.name, from_files=False)
        network, untrained_head = auto.from_config(config, trust_remote_code=False), TASKS[task].classifies
    if source.state_file is not None:
        untrained_head = _load_state(network, Path(source.state_file))
    # Before the cast, so that it does not depend on the precision.
    sha256 = _fingerprint(network, kept, f"'{source.state_file or source.name}'")
    if precision is not None:
        for module in heads(network) if sharded else (network,):
            cast(module.parameters(), base_dtype(precision))
    if quantize is not None:
        put_nf4_layers(network, present(precision))
    return Base(network, untrained_head, sha256)


def _load_quantized(auto: Any, source: BaseSource, config: PretrainedConfig, precision: str, quantize: str) -> Base:
    """Read the files twice. The first time they are not quantised, for the fingerprint and the head of any run.

    This takes time but little memory, because transformers maps safetensors files into memory.
    """
    torch.manual_seed(source.seed)
    kept = KeptDigest(source.name)
    plain, untrained_head = _from_files(auto, source.name, copy.deepcopy(config), dtype="auto")
    how = loading_arguments(quantize, precision)
    network, _ = _from_files(auto, source.name, config, dtype=base_dtype(precision), **how)
    for own, head in zip(heads(network), heads(plain), strict=True):
        own.load_state_dict(head.state_dict())
    return Base(network, untrained_head, _fingerprint(plain, kept, f"'{source.name}'"))


def _fingerprint(network: PreTrainedModel, kept: KeptDigest | None, where: str) -> str:
    """Return the digest of all tensors except the head. Raises UserError if a weight, also of the head, is not finite.

    `kept` is that of the files that were read. A digest is kept of finite weights only, so that files that are the same
    are not read again, neither for the digest nor for this check.
    """
    state = network.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if not in_head(name)}
    check_finite({name: tensor for name, tensor in state.items() if in_head(name)}, where)

    def compute() -> str:
        check_finite(tensors, where)
        return digest_of(tensors).hexdigest()

    if kept is None:
        return compute()
    form = [[name, list(tensor.shape), str(tensor.dtype)] for name, tensor in tensors.items()]
    return kept.of([type(network).__qualname__, "finite", form], compute)


def _load_state(network: PreTrainedModel, path: Path) -> bool:
    """Load a state dict, in which the head and tied weights may be missing. Returns whether the head is missing."""
    state, own = read_state_dict(path), network.state_dict()
    of_head = {name for name in own if _in_new_head(network, name)}
    optional = set(getattr(network, "all_tied_weights_keys", None) or ()) | of_head
    misfit = f"{path} does not fit {type(network).__name__}"
    check_fit(state, own, misfit, "give a state dict of this model", optional)
    network.load_state_dict(state, strict=False)
    return not of_head <= state.keys()


def _in_new_head(network: PreTrainedModel, name: str) -> bool:
    """Whether a parameter may be missing in the files of a base, because it belongs to the head of a classifier.

    Heads have other names in a family that only plain models use, such as `pre_classifier` of DistilBERT.
    """
    if families.for_model_type(network.config.model_type) is not None:
        return in_head(name)
    return network.get_output_embeddings() is None and not name.startswith(f"{network.base_model_prefix}.")


def _from_files(auto: Any, source: str, config: PretrainedConfig, **how: Any) -> tuple[PreTrainedModel, bool]:
    """Return the network and whether its head is newly initialised. `how` is passed to `from_pretrained`."""
    options = {"config": config, "ignore_mismatched_sizes": True, "output_loading_info": True, **how}
    with reading("the model", source, where_from(source)):
        network, info = auto.from_pretrained(source, trust_remote_code=False, use_kernels=False, **options)
    for name, stored, own in sorted(info["mismatched_keys"]):
        if not _in_new_head(network, name):
            raise UserError(
                f"the weights of '{source}' do not fit its configuration: {name} has shape {tuple(stored)}",
                f"expected {tuple(own)}; give a folder whose files belong together",
            )
    _check_blocks(network, source, info["unexpected_keys"])
    new = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    lacking = sorted(name for name in new if not _in_new_head(network, name))
    if lacking:
        raise UserError(
            f"'{source}' lacks {len(lacking)} weights of {type(network).__name__}, such as {lacking[0]}",
            "give a folder or hub name of the complete pretrained model"
            if any(".pooler." not in name for name in lacking)
            else "give a base with a pooler, which a masked language model lacks, or a RoBERTa, which needs none",
        )
    if not new and next(heads(network), None) is not None:
        _follow_labels(network, read_config(source).id2label or {})
    return network, bool(new)


def _check_blocks(network: PreTrainedModel, source: str, unexpected: Iterable[str]) -> None:
    """Raise UserError if the files have blocks that the configuration leaves out."""
    prefix = f"{network.base_model_prefix}."
    own = {_NUMBER.sub(".*", name.removeprefix(prefix)) for name in network.state_dict()}
    more = sorted(
        name for name in unexpected if _NUMBER.search(name) and _NUMBER.sub(".*", name.removeprefix(prefix)) in own
    )
    if more:
        raise UserError(
            f"'{source}' has {len(more)} weights of blocks that its configuration leaves out, such as {more[0]}",
            "give a folder whose files belong together",
        )


def _follow_labels(network: PreTrainedModel, stored: Mapping[Any, str]) -> None:
    """Reorder the outputs of a pretrained head: the same labels may have another order in the data set."""
    named = {name.casefold(): index for index, name in stored.items()}
    names = [name.casefold() for _, name in sorted((network.config.id2label or {}).items())]
    if not set(names) <= named.keys() or len(named) != len(names):
        return
    order = [named[name] for name in names]
    if order == sorted(order):
        return
    layers = [layer for head in heads(network) for layer in head.modules()]
    outputs = [layer for layer in layers if getattr(layer, "out_features", None) == len(order)]
    for parameter in outputs[-1].parameters() if outputs else ():
        parameter.data = parameter.data[order]


def enable_gradient_checkpointing(
    network: PreTrainedModel,
    space: SearchSpace | None = None,
    recomputed_in: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Recompute the activations of the blocks in the backward pass instead of keeping them (Chen et al. 2016).

    An adapted network needs its search space. Each block is recomputed inside a `recomputed_in()`: torch runs the
    backward pass without the modes of the caller.
    """
    contexts = _Contexts(None if space is None else space.carry, recomputed_in)
    network.activation_checkpointing_enable({"use_reentrant": False, "context_fn": contexts})
    network.disable_input_require_grads()  # only the reentrant kind needs embeddings that require a gradient


@dataclass(frozen=True)
class _Contexts:
    """`context_fn` of `torch.utils.checkpoint`. A deep copy of the network copies it with its own carry."""

    carry: Carry | None
    recomputed_in: Callable[[], AbstractContextManager[Any]]

    def __call__(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        forward, again = (nullcontext(), nullcontext()) if self.carry is None else self.carry.contexts()
        return forward, _both(self.recomputed_in(), again)


@contextmanager
def _both(outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> Iterator[None]:
    with outer, inner:
        yield
