"""Removes what is off from a PEFT model, so that its saved adapter holds what is on only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heterolora.common.errors import UserError
from heterolora.elements.element import alpha_of
from heterolora.elements.peft_config import shortest
from heterolora.elements.peft_experts import is_of_parameter
from heterolora.elements.peft_layers import PeftLora
from heterolora.elements.peft_space import lora_layers, path_of, tuner_layers


def compact_peft(network: nn.Module, adapter: str | None = None) -> None:
    """Remove the layers of the adapter that are off, and the ranks with zeros in A and B, in place.

    Raises:
        UserError: as `peft_space`, all layers are off, or a layer that is off has other adapters too.
    """
    found = lora_layers(network, adapter)
    off, on = [each for each in found if not each.enabled], [each for each in found if each.enabled]
    if not on:
        raise UserError("all layers of the adapter are off", "keep at least one of them on")
    check_alone(off)
    _remove(network, off)
    cut = {each.element.module: each for each in on if _cut(each)}
    if off or cut:
        for config, owner in _configs(network, found[0].adapter):
            _rewrite(config, owner, found[0].adapter, cut)


def check_alone(layers: Sequence[PeftLora]) -> None:
    """Raise UserError if a layer has other adapters, which would go with it."""
    for each in layers:
        if len(each.layer.lora_A) > 1:
            several = f"{each.element.module} has several adapters ({', '.join(sorted(each.layer.lora_A))})"
            raise UserError(several, "delete the others before, with model.delete_adapter(name)")


def _configs(network: nn.Module, adapter: str) -> list[tuple[Any, nn.Module]]:
    """Each configuration of the adapter, with the innermost module that has it: the base model."""
    owners: list[Any] = [module for module in network.modules() if adapter in getattr(module, "peft_config", ())]
    return list({id(owner.peft_config[adapter]): (owner.peft_config[adapter], owner) for owner in owners}.values())


def _remove(network: nn.Module, off: Sequence[PeftLora]) -> None:
    """Replace each layer by its base. A module with several adapted weights has one wrapper inside another."""
    paths = {module: path for path, module in network.named_modules()}
    for each in sorted(off, key=lambda each: -len(paths[each.layer])):  # the innermost first
        network.set_submodule(paths[each.layer], each.layer.base_layer)


@torch.no_grad()
def _cut(lora: PeftLora) -> bool:
    """Remove the ranks of a layer with zeros in A and B. Returns whether there are any."""
    layer, name, rank = lora.layer, lora.adapter, lora.element.rank
    # (experts, r, …) and (out, r, experts, …); a linear layer counts as one expert
    A, B = lora.A.reshape(-1, rank, *lora.A.shape[1:]), lora.B.reshape(len(lora.B), rank, -1, *lora.B.shape[2:])
    kept = A.transpose(0, 1).flatten(1).any(1) | B.transpose(0, 1).flatten(1).any(1)
    left = int(kept.sum())
    if left in (0, rank):
        return False
    _replace(layer.lora_A[name], A[:, kept].flatten(0, 1))
    _replace(layer.lora_B[name], B[:, kept].flatten(1, 2))
    layer.r[name] = left
    layer.lora_alpha[name] = shortest(alpha_of(lora.scaling, left, lora.element.settings.use_rslora))
    return True


def _replace(module: Any, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.clone(), requires_grad=module.weight.requires_grad)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape


def _rewrite(config: Any, owner: nn.Module, adapter: str, cut: Mapping[str, PeftLora]) -> None:
    """Make a configuration that of the layers which the adapter has in `owner`."""
    layers = [
        (path_of(path, layer), layer)
        for path, layer in tuner_layers(owner)
        if any(adapter in getattr(layer, part, ()) for part in ("lora_A", "lora_embedding_A"))
    ]
    config.target_modules = {path for path, layer in layers if not is_of_parameter(layer)}
    if getattr(config, "target_parameters", None):
        config.target_parameters = sorted(path for path, layer in layers if is_of_parameter(layer)) or None
    config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    ours = {path: layer for path, layer in layers if any(layer is each.layer for each in cut.values())}
    # PEFT takes the first pattern that matches.
    patterns = {f"^{re.escape(path)}": layer for path, layer in ours.items()}
    config.rank_pattern = {key: layer.r[adapter] for key, layer in patterns.items()} | (config.rank_pattern or {})
    alphas = {key: layer.lora_alpha[adapter] for key, layer in patterns.items()}
    config.alpha_pattern = alphas | (config.alpha_pattern or {})
