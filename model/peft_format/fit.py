"""Checks that an adapter fits the base that it is loaded into, and copies its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from heterolora.common.errors import UserError
from heterolora.elements.adapt import in_head
from heterolora.elements.blocks import outside_of
from heterolora.elements.config import ElementConfig, Site
from heterolora.elements.element import OUTSIDE, Settings
from heterolora.elements.embedding import LoraEmbedding
from heterolora.elements.experts import shape_of
from heterolora.elements.family import Family
from heterolora.elements.found import stacked_weights
from heterolora.elements.linear import is_linear, is_transposed, widths_of
from heterolora.elements.low_rank import LoraLinear
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.task import TASKS, Task
from model.peft_format import CONFIG, WEIGHTS
from model.peft_format.adapter import Adapter, LoraWeights, check_rank


def named(adapter: Adapter, family: Family) -> Adapter:
    """Return the adapter with the LoRA of experts in `lora`, by the names of parameters.

    Raises UserError if a module of experts has not as many parameters with LoRA as the adapter.
    """
    lora = dict(adapter.lora)
    for host, pairs in adapter.of_experts.items():
        split = [path.rpartition(".") for path in family.experts.values()]
        names = [f"{host}.{end}" for inside, _, end in split if f".{host}".endswith(f".{inside}")]
        parameters = [name for name in names if adapter.settings.targets_parameter(name)]
        if len(parameters) != len(pairs):
            raise UserError(
                f"{adapter.folder / WEIGHTS} has LoRA on {len(pairs)} parameters of {host}, and {CONFIG} names "
                f"{len(parameters)} that {family.name} models have",
                f"expected it on {', '.join(family.experts) or 'linear layers alone'}",
            )
        for parameter, (A, B) in zip(parameters, pairs, strict=True):
            lora[parameter] = LoraWeights(adapter.settings.element(parameter), A, B)
    return replace(adapter, lora=lora, of_experts={})


def config_of_adapter(
    adapter: Adapter, family: Family, outside: Callable[[], Mapping[str, str]] = dict
) -> ElementConfig:
    """Return the layer-wise configuration with LoRA on the layers of the adapter.

    Args:
        outside: returns path -> name of the places outside of the blocks.

    Raises UserError if a layer is not in the family's table, and not outside of the blocks.
    """
    names = {path: name for name, path in family.places.items()}
    lists = {family.blocks: 0, **family.more_blocks}
    either = [f"(?:{'|'.join(map(re.escape, each))})" for each in (lists, names)]
    pattern = re.compile(rf"(?:[^.]+\.)?({either[0]})\.(\d+)\.({either[1]})")
    sites: dict[Site, Settings] = {}
    for module, weights in adapter.lora.items():
        place = pattern.fullmatch(module)
        if place is None and (name := outside().get(module)) is not None:
            sites[OUTSIDE[name], name] = weights.settings
            continue
        if place is None:
            raise UserError(
                f"{adapter.folder} has LoRA on {module}, which {family.name} models do not support here",
                f"expected it on {' or '.join(lists)}.<i>.{{{', '.join(names)}}}",
            )
        sites[lists[place[1]] + int(place[2]), names[place[3]]] = weights.settings
    return ElementConfig("lora", "layer", Settings(), sites)


def check_modules(adapter: Adapter, network: nn.Module, name: str) -> None:
    """Raise UserError if the base lacks a module or shape of the adapter, or the adapter a module that it names.

    The tensors of the base, `network`, may be on the meta device. `name` is its name in messages.
    """
    other = f"{adapter.folder} is an adapter for another base"
    expected = f"give its own (it names {adapter.settings.base or 'none'}) as --backbone-model"
    linears = {path: module for path, module in network.named_modules() if is_linear(module)}
    linears |= {path: network.get_submodule(path) for path in outside_of(network).values()}
    experts = {name: shape_of(network, name) for name in stacked_weights(network)}
    if adapter.settings.transposed and not any(
        is_transposed(linears[each]) for each in adapter.lora if each in linears
    ):
        misfit = f"{adapter.folder / CONFIG}: fan_in_fan_out is true, and '{name}' has no transposed weights"
        raise UserError(misfit, "give the base of the adapter, or set fan_in_fan_out to false")
    for module, weights in adapter.lora.items():
        wanted = (weights.A.shape[1], weights.B.shape[0])
        if module not in linears and module not in experts:
            raise UserError(f"{other}: '{name}' has no linear layer {module}", expected)
        number, *found = experts[module] if module in experts else (1, *widths_of(linears[module]))
        check_rank(adapter.folder / WEIGHTS, module, weights.settings, weights.A, number)
        if tuple(found) != wanted:
            raise UserError(
                f"{other}: its {module} is {wanted[0]} to {wanted[1]} wide, that of '{name}' {found[0]} to {found[1]}",
                expected,
            )
    for module in (linears.keys() | experts.keys()) - adapter.lora.keys():
        if adapter.settings.targets_parameter(module) if module in experts else adapter.settings.targets(module):
            raise UserError(
                f"{adapter.folder / WEIGHTS} lacks {module}, which {CONFIG} names",
                "give the whole adapter, as save_pretrained wrote it",
            )
    for parameter, own in network.named_parameters():
        values = adapter.head.get(parameter)
        if values is not None and own.shape != values.shape:
            raise UserError(
                f"{adapter.folder} has a classification head whose {parameter} is {tuple(values.shape)}, for this data "
                f"set it is {tuple(own.shape)}",
                "give the data set that it was trained on, or one with as many labels",
            )


def check_adapter_weights(adapter: Adapter, base_sha256: str, task: Task) -> None:
    """Raise UserError if the adapter's record names other weights. A different head changes the fingerprint of the
    same base, so then there is no check."""
    record = adapter.record
    if record is None or adapter.settings.task_type not in TASKS[task].peft_types:
        return
    if record.base_sha256 != base_sha256:
        raise UserError(
            f"{adapter.folder} was trained on another base model than the present '{record.base.name}'",
            f"give the original weights of '{record.base.name}' as --backbone-model",
        )


@torch.no_grad()
def put_into(adapter: Adapter, network: nn.Module, space: SearchSpace) -> bool:
    """Copy an adapter's weights into a network with its elements. Shortcuts without weights keep their initial ones.

    Returns whether the network has a classification head that comes entirely from the adapter. Raises UserError if a
    shortcut has another shape, or the adapter has other weights of the base.
    """
    _check_base(adapter, network)
    given = {**adapter.shortcut_weights, **adapter.head}
    for element in (low_rank.element for low_rank in space.of_kind("lora")):
        weights = adapter.lora[element.module]
        given |= {f"{element.key}.A": weights.A, f"{element.key}.B": weights.B}
    head = {name: parameter for name, parameter in network.named_parameters() if in_head(name)}
    own = {f"{each.element.key}.{matrix}": getattr(each, matrix) for each in space for matrix in "AB"} | head
    for name, values in given.items():
        if name not in own:
            continue
        if values.shape != own[name].shape:
            raise UserError(
                f"{adapter.folder}: {name} has shape {tuple(values.shape)}",
                f"expected {tuple(own[name].shape)} for this base",
            )
        own[name].copy_(values)
    return bool(head) and head.keys() <= adapter.head.keys()


def _check_base(adapter: Adapter, network: nn.Module) -> None:
    """Raise UserError if a weight of the base in the adapter is not that of the network."""
    for path, weight in adapter.of_base.items():
        module = network.get_submodule(path)
        own = cast(Tensor, (module.base if isinstance(module, LoraLinear | LoraEmbedding) else module).weight)
        if own.shape != weight.shape or not torch.equal(own.to(weight.dtype).cpu(), weight):
            raise UserError(
                f"{adapter.folder / WEIGHTS} has other weights of {path} than the base",
                "give an adapter of a base whose own weights are as they were",
            )
