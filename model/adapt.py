"""Configurations and a pretrained network -> the adapted network and its search space."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dataset.errors import UserError
from model.config import SHORTCUTS, ElementConfig, ElementSettings, Kind
from model.family.base import Family
from model.lora import LoraLinear
from model.low_rank import LowRank
from model.search_space import Element, SearchSpace

#: What Hugging Face calls a classification head. `lm_head` is none: it is tied to the embedding.
HEADS = ("score", "classifier")


@dataclass(frozen=True)
class PlannedElement:
    """An element that a network will have: everything but its widths and parameters."""

    layer: int
    name: str
    kind: Kind
    settings: ElementSettings


@dataclass(frozen=True)
class Plan:
    """What a network of one architecture becomes under its configurations.

    Two configurations say the same of a model exactly when their plans are equal.

    Attributes:
        elements: by block and, within a block, LoRA in table order, then shortcuts.
        renormalize: whether the blocks normalise once more after the cross-layer shortcuts.
        notes: what a user should hear, one line each.
    """

    elements: tuple[PlannedElement, ...]
    renormalize: bool
    notes: tuple[str, ...]


def plan(family: Family, hf_config: Any, lora: ElementConfig | None, shortcut: ElementConfig | None = None) -> Plan:
    """Check configurations against an architecture before any weight is loaded.

    Args:
        family: the table to use.
        hf_config: the Hugging Face configuration of the model.
        lora: the LoRA configuration, if there is one.
        shortcut: the shortcut configuration, if there is one.

    Raises:
        UserError: the family does not fit the model, or a configuration names a block that the model lacks.
    """
    family.check(hf_config)
    layers = hf_config.num_hidden_layers
    valid = {"lora": tuple(family.linears), "shortcut": SHORTCUTS}
    configs = [config for config in (lora, shortcut) if config is not None]
    notes: list[str] = []
    for config in configs:
        notes.extend(config.notes)
        for layer, name in config.named_sites():
            if layer is not None and layer >= layers:
                raise UserError(
                    f"{config.kind} configuration: [model_layer_{layer}.{name}] is beyond the model",
                    f"it has {layers} blocks, 0 to {layers - 1}",
                )
            if name not in valid[config.kind]:
                notes.append(f"{config.kind} configuration: {name} is ignored: {family.name} has none")
    elements = tuple(
        PlannedElement(layer, name, config.kind, settings)
        for layer in range(layers)
        for config in configs
        for name in valid[config.kind]
        if (settings := config.lookup(layer, name)) is not None
    )
    return Plan(elements, shortcut is not None and shortcut.renormalize, tuple(dict.fromkeys(notes)))


def adapt(
    network: nn.Module, family: Family, lora: ElementConfig | None, shortcut: ElementConfig | None = None
) -> SearchSpace:
    """Turn a pretrained network into an adapted one, in place: it still computes what it did, since B = 0.

    The base is frozen, linear layers are wrapped, and a classification head is made float32. Elements and head are what
    trains, nothing else.

    Args:
        network: a Hugging Face model of the family, with any head, in any floating dtype or quantised.
        family: its table.
        lora: the LoRA configuration, if there is one.
        shortcut: the shortcut configuration, if there is one.

    Returns:
        the search space; every element is on.
    """
    planned = plan(family, network.config, lora, shortcut)
    blocks = tuple(network.base_model.get_submodule(family.blocks))
    paths = {module: path for path, module in network.named_modules()}
    network.requires_grad_(False)
    elements = []
    for item in planned.elements:
        block = blocks[item.layer]
        path = family.linears[item.name]
        base = block.get_submodule(path)
        low_rank = _low_rank(base.in_features, base.out_features, item.settings, _device(base, network))
        block.set_submodule(path, LoraLinear(base, low_rank))
        elements.append(Element(item.layer, item.name, item.kind, paths[base], low_rank))
    for head in heads(network):
        head.to(torch.float32).requires_grad_(True)
        head.register_forward_pre_hook(_cast_input)
    return SearchSpace(tuple(elements), blocks, family.pre_norm(network.config))


def heads(network: nn.Module) -> Iterator[nn.Module]:
    """The classification heads of a network: one, or none."""
    return (module for name, module in network.named_children() if name in HEADS)


def _low_rank(width_in: int, width_out: int, settings: ElementSettings, device: torch.device) -> LowRank:
    made = LowRank(width_in, width_out, settings.r, settings.alpha, settings.dropout, settings.use_rslora)
    return made.to(device)


def _device(base: nn.Module, network: nn.Module) -> torch.device:
    """Where a layer is; a quantised one may keep its tensors out of sight, then where the network is."""
    tensor = next(itertools.chain(base.parameters(), base.buffers()), None)
    return network.device if tensor is None else tensor.device


def _cast_input(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Pre-hook of a float32 head on a base of another dtype. Bound to nothing, so a deep copy of the head keeps it."""
    return (args[0].to(torch.float32), *args[1:])
