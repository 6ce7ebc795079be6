"""A small random model of the same architecture, to try on it what a user asks of the real one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from heterolora.elements.task import Task
from model.skeleton import auto_class, skeleton

VOCABULARY = 64
_WIDTH = 64
_MOST = 100_000_000  # weights


def tiny_copy(config: PretrainedConfig, task: Task, narrow: bool = True, layers: int = 2) -> PreTrainedModel | None:
    """Build a network with few layers and tokens in evaluation mode, from `config`, which does not change.

    It has at least `layers` layers, some of every type, heads of the same width, and as many query heads to a key head.
    No weight is at its usual start, so that all parts count. With `narrow` it is also narrower. Returns None if
    transformers cannot build it, or if it is large.
    """
    try:
        small = _shrunken(config, narrow, layers)
        if sum(p.numel() for p in skeleton(small, task).parameters()) > _MOST:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network: PreTrainedModel = auto_class(task, small).from_config(small, trust_remote_code=False)
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
    except Exception:  # transformers raises many kinds for values that do not fit together
        return None
    return network.float().eval()


def _shrunken(config: PretrainedConfig, narrow: bool, least: int) -> PretrainedConfig:
    small = copy.deepcopy(config)
    text = small.get_text_config()
    layers = text.num_hidden_layers
    few = min(layers, max(least, _few_layers(getattr(text, "layer_types", None), layers)))
    lists = {key: value for key, value in vars(text).items() if isinstance(value, list) and len(value) == layers}
    values: dict[str, Any] = {"num_hidden_layers": few, **{key: value[:few] for key, value in lists.items()}}
    values |= {"vocab_size": VOCABULARY, "use_cache": False}
    values |= {f"{name}_token_id": number for number, name in enumerate(("bos", "pad", "eos"))}
    if narrow:
        values |= _narrow(text)
    for key, value in values.items():
        setattr(text, key, value)
    return small


def _few_layers(types: list[str] | None, layers: int) -> int:
    """The number of first layers that have one of each type; at least 2, if there are so many."""
    last = max((types.index(kind) for kind in set(types)), default=0) if types else 0
    return min(layers, max(2, last + 1))


def _narrow(text: PretrainedConfig) -> dict[str, int]:
    heads, hidden = text.num_attention_heads, text.hidden_size
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    of_one = heads // key_heads if heads % key_heads == 0 else heads
    few = of_one if of_one > 1 else min(heads, 2)
    own_width = getattr(text, "head_dim", None) not in (None, hidden // heads)
    values = {"num_attention_heads": few, "hidden_size": _WIDTH if own_width else hidden // heads * few}
    if getattr(text, "num_key_value_heads", None) is not None:
        values["num_key_value_heads"] = few // of_one
    inner = (key for key in vars(text) if key.endswith("intermediate_size") or key == "ffn_dim")
    return values | {key: _WIDTH for key in inner if isinstance(getattr(text, key), int)}
