"""The blocks of any Transformers model and their linear layers, found in the network itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import nn

from heterolora.common.errors import UserError
from heterolora.elements.blocks import base_of
from heterolora.elements.element import PROJECTIONS
from heterolora.elements.family import Family, always
from heterolora.elements.linear import is_linear, widths_of
from heterolora.elements.task import TASKS, Task

#: Canonical name -> ends of paths of layers that do what it says. Where several names fit, the first one counts.
_USUAL: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("q_proj", "query", "query_proj", "q_lin", "attn.q", "SelfAttention.q"),
    "k_proj": ("k_proj", "key", "key_proj", "k_lin", "attn.k", "SelfAttention.k"),
    "v_proj": ("v_proj", "value", "value_proj", "v_lin", "attn.v", "SelfAttention.v"),
    "o_proj": (
        *("o_proj", "out_proj", "out_lin", "attn.o", "SelfAttention.o", "attention.output.dense", "attention.dense"),
        *("self_attn.dense", "self_attention.dense", "attn.c_proj", "attn.Wo"),
    ),
    "w1": ("fc1", "up_proj", "lin1", "intermediate.dense", "dense_h_to_4h", "fc_in", "c_fc", "ffn"),
    "w2": ("fc2", "down_proj", "lin2", "output.dense", "dense_4h_to_h", "fc_out", "mlp.c_proj", "mlp.Wo", "ffn_output"),
    "gate": ("gate_proj",),
}


def family_of(network: nn.Module, model_type: str, tasks: tuple[Task, ...] = tuple(TASKS)) -> Family:
    """The places for LoRA in a Transformers model, which may be on the meta device. Where its norms are is not known.

    The blocks are the longest list of modules with linear layers, in the text part of a model that also has others. An
    encoder-decoder has two lists; the blocks of the decoder follow those of the encoder.
    The places are the linear layers of the blocks that are wider than 1, and the weights of experts. A layer that only
    some blocks have is a place in these. Raises UserError if the network has no such list.
    """
    base = base_of(network)
    lists = {path: module for path, module in _text_part(base) if isinstance(module, nn.ModuleList)}
    layers = {path: _linears(module) for path, module in lists.items()}
    candidates = [path for path in lists if layers[path] and not any(path.startswith(f"{other}.") for other in lists)]
    if not candidates:
        raise UserError(
            f"no list of blocks with linear layers is found in a model of type '{model_type}'",
            "give --model with a hub name or folder, to fine-tune all parameters",
        )
    blocks = max(candidates, key=lambda path: (len(lists[path]), sum(p.numel() for p in lists[path].parameters())))
    chosen = candidates if base.config.is_encoder_decoder else [blocks]  # type: ignore[union-attr]
    counts = [len(lists[path]) for path in chosen]
    return Family(
        name=model_type,
        model_types=(model_type,),
        blocks=chosen[0],
        linears=names_of(tuple(dict.fromkeys(layer for path in chosen for layer in layers[path]))),
        norm1="",
        norm2="",
        pre_norm=always,
        found=True,
        positions_after_padding=positions_after_padding(network),
        tasks=tasks,
        experts=_experts(nn.ModuleList(block for path in chosen for block in lists[path])),
        more_blocks={path: sum(counts[:number]) for number, path in enumerate(chosen) if number},
    )


def names_of(paths: tuple[str, ...]) -> dict[str, str]:
    """Name -> path inside a block: the canonical name, else the last part of the path, else the path.

    A name that two layers would have is given to none of them.
    """
    canonical = {path: _canonical(path) for path in paths}
    uses, ends = Counter(canonical.values()), Counter(path.rpartition(".")[2] for path in paths)
    names = {}
    for path in paths:
        known, end = canonical[path], path.rpartition(".")[2]
        own = end if ends[end] == 1 and end not in _given() else path
        names[known if known is not None and uses[known] == 1 else own] = path
    order = [name for name in PROJECTIONS if name in names]
    return {name: names[name] for name in (*order, *(name for name in names if name not in PROJECTIONS))}


def positions_after_padding(network: nn.Module) -> bool:
    """Whether position ids start after the padding index, as in RoBERTa: then the table of positions has one too."""
    return any(
        isinstance(module, nn.Embedding) and "position" in path and module.padding_idx is not None
        for path, module in network.named_modules()
    )


def stacked_weights(network: nn.Module) -> tuple[str, ...]:
    """Names of parameters that hold a weight for each expert, (experts, rows, columns), and so are no linear layer."""
    return tuple(
        f"{path}.{name}"
        for path, module in network.named_modules()
        if not type(module).__module__.startswith("torch.")  # a convolution
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and parameter.shape[0] > 1
    )


def _experts(blocks: nn.ModuleList) -> dict[str, str]:
    """Name -> path inside a block: the last two parts of the path, or the path if another one ends so."""
    paths = tuple(dict.fromkeys(name.partition(".")[2] for name in stacked_weights(blocks)))
    ends = {path: ".".join(path.split(".")[-2:]) for path in paths}
    uses = Counter(ends.values())
    return {end if uses[end] == 1 else path: path for path, end in ends.items()}


def _given() -> set[str]:
    return {given for name, others in PROJECTIONS.items() for given in (name, *others)}


def _text_part(base: nn.Module) -> list[tuple[str, nn.Module]]:
    """Path in the base -> module, of a model for text, or of the part for text of another."""
    config = base.config
    text = config.get_text_config()  # type: ignore[union-attr, operator]
    parts = dict(base.named_modules())
    inner = next((path for path, part in parts.items() if path and getattr(part, "config", None) is text), None)
    if text is config or inner is None:
        return list(parts.items())
    return [(path, part) for path, part in parts.items() if path.startswith(f"{inner}.")]


def _linears(blocks: nn.ModuleList) -> tuple[str, ...]:
    """Paths of the linear layers inside any of the blocks, in the order of the network."""
    found = {
        path: None
        for block in blocks
        for path, module in block.named_modules()
        if path and is_linear(module) and min(widths_of(module)) > 1
    }
    return tuple(found)


def _canonical(path: str) -> str | None:
    return next((name for name, ends in _USUAL.items() if any(f".{path}".endswith(f".{end}") for end in ends)), None)
