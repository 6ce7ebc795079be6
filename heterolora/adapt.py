"""Configurations and a pretrained network -> the adapted network and its search space."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from heterolora.config import SHORTCUTS, ElementConfig, ElementSettings, Kind
from heterolora.errors import UserError
from heterolora.family import Family
from heterolora.lora import LoraLinear
from heterolora.low_rank import LowRank
from heterolora.search_space import Element, SearchSpace
from heterolora.shortcut import Carry, Shortcuts

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
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def shortcuts(self) -> bool:
        """Whether the blocks need anything of the shortcuts."""
        return self.renormalize or any(item.kind == "shortcut" for item in self.elements)

    def same_elements(self, other: Plan) -> bool:
        """Whether both make a model that computes the same: places, ranks and scalings, whatever its dropout."""
        mine, others = (
            {(item.layer, item.name): item.settings for item in planned.elements} for planned in (self, other)
        )
        return (
            self.renormalize == other.renormalize
            and mine.keys() == others.keys()
            and all(mine[place].r == others[place].r for place in mine)
            and all(math.isclose(mine[place].scaling, others[place].scaling) for place in mine)
        )

    def of_block(self, layer: int) -> tuple[PlannedElement, ...]:
        return tuple(item for item in self.elements if item.layer == layer)


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
    planned = Plan(elements, shortcut is not None and shortcut.renormalize, tuple(dict.fromkeys(notes)))
    if planned.shortcuts:
        _check_blocks(hf_config)
    return planned


def _check_blocks(hf_config: Any) -> None:
    """Shortcuts need blocks that all run, once a forward pass, over the whole sequence."""
    for key in ("layerdrop", "chunk_size_feed_forward"):
        if getattr(hf_config, key, 0):
            raise UserError(
                f"shortcuts do not go with {key} = {getattr(hf_config, key)} in the model's configuration",
                "expected 0: every block must run, over the whole sequence at once",
            )


def adapt(
    network: nn.Module, family: Family, lora: ElementConfig | None, shortcut: ElementConfig | None = None
) -> SearchSpace:
    """Turn a pretrained network into an adapted one, in place: it still computes what it did, since B = 0.

    The base is frozen, linear layers are wrapped, shortcuts join their blocks, and a classification head is made
    float32. Elements and head are what trains, nothing else.

    Args:
        network: a Hugging Face model of the family, with any head, in any floating dtype or quantised.
        family: its table.
        lora: the LoRA configuration, if there is one.
        shortcut: the shortcut configuration, if there is one.

    Returns:
        the search space; every element is on.
    """
    planned = plan(family, network.config, lora, shortcut)
    pre_norm = family.pre_norm(network.config)
    blocks = tuple(network.base_model.get_submodule(family.blocks))
    paths = {module: path for path, module in network.named_modules()}
    carry = Carry()
    network.requires_grad_(False)
    elements: list[Element] = []
    for layer, block in enumerate(blocks):
        shortcuts = {}
        for item in planned.of_block(layer):  # LoRA first
            beside = block.get_submodule(family.linears[item.name]) if item.kind == "lora" else block
            low_rank = _low_rank(beside, item, network)
            elements.append(Element(layer, item.name, item.kind, paths[beside], low_rank))
            if item.kind == "lora":
                block.set_submodule(family.linears[item.name], LoraLinear(beside, low_rank))
            else:
                shortcuts[item.name] = low_rank
        if planned.shortcuts:
            Shortcuts(layer, shortcuts, carry, planned.renormalize).attach(block, family, pre_norm)
    for head in heads(network):
        head.to(torch.float32).requires_grad_(True)
        head.register_forward_pre_hook(_cast_input)
    return SearchSpace(tuple(elements), blocks, family, pre_norm, carry)


def enable_gradient_checkpointing(network: nn.Module, space: SearchSpace | None = None) -> None:
    """Recompute the blocks' activations in the backward pass instead of keeping them (Chen et al. 2016).

    Args:
        network: a Hugging Face model, adapted or plain.
        space: its search space if it is adapted.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if space is not None:
        options["context_fn"] = space.carry.contexts
    network.activation_checkpointing_enable(options)
    network.disable_input_require_grads()  # only the reentrant kind needs embeddings that require a gradient


def heads(network: nn.Module) -> Iterator[nn.Module]:
    """The classification heads of a network: one, or none."""
    return (module for name, module in network.named_children() if name in HEADS)


def _low_rank(beside: nn.Module, item: PlannedElement, network: nn.Module) -> LowRank:
    """The parameters of an element beside a linear layer or, as wide as the block, a shortcut's."""
    if item.kind == "lora":
        width_in, width_out = beside.in_features, beside.out_features
    else:
        width_in = width_out = network.config.hidden_size
    settings = item.settings
    low_rank = LowRank(width_in, width_out, settings.r, settings.alpha, settings.dropout, settings.use_rslora)
    return low_rank.to(_device(beside, network))


def _device(beside: nn.Module, network: nn.Module) -> torch.device:
    """Where a module is; a quantised one may keep its tensors out of sight, then where the network is."""
    tensor = next(itertools.chain(beside.parameters(), beside.buffers()), None)
    return network.device if tensor is None else tensor.device


def _cast_input(head: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Pre-hook of a head on a base of another dtype. Bound to nothing, so a deep copy of the head keeps it."""
    return (args[0].to(next(head.parameters()).dtype), *args[1:])
