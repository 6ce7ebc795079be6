"""The LoRA layers of a PEFT model as a search space."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from heterolora.common.errors import UserError, nearest
from heterolora.elements.element import Settings
from heterolora.elements.peft_experts import PeftExperts, is_of_parameter, weight_path
from heterolora.elements.peft_layers import PeftElement, PeftLora, tensors_of
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.targets import place_of

if TYPE_CHECKING:
    from heterolora.elements.low_rank import LowRank

_CHANGES = ("pissa", "olora", "corda", "loftq", "lora_ga")

PREFIX = "base_model.model."  # of a module's path in a PEFT model, which may be a part of another module


def has_peft_layers(network: nn.Module) -> bool:
    """Whether a layer of PEFT is in the network. Imports nothing: without PEFT there can be none."""
    return any(True for _ in tuner_layers(network))


def peft_space(network: nn.Module, adapter: str | None = None) -> SearchSpace:
    """The LoRA layers of a PEFT model as a search space, by block.

    Args:
        network: a model with PEFT's LoRA layers, such as `peft.get_peft_model` returns.
        adapter: the adapter; by default the only one, or `default`.

    Raises:
        UserError: there are no LoRA layers, the adapter does not exist, or it is merged into the base.
    """
    # They have the attributes of `LowRank` that a search and the heuristics use.
    return SearchSpace(tuple(cast("list[LowRank]", lora_layers(network, adapter))))


def lora_layers(network: nn.Module, adapter: str | None) -> list[PeftLora]:
    layers = [(path, layer) for path, layer in tuner_layers(network) if len(getattr(layer, "lora_A", ()))]
    if not layers:
        raise UserError("the model has no LoRA layers of PEFT", "give a model of peft.get_peft_model with LoraConfig")
    names = sorted({name for _, layer in layers for name in layer.lora_A})
    chosen = adapter if adapter is not None else names[0] if len(names) == 1 else "default"
    if chosen not in names:
        raise UserError(f"the model has no adapter '{chosen}'", nearest(chosen, names))
    of_adapter = [(path_of(path, layer), layer) for path, layer in layers if chosen in layer.lora_A]
    if (start := _changes_the_base(network, chosen)) is not None:
        changed = (
            f"init_lora_weights is '{start}', which changes the base: a layer that is off would not be the model's own"
        )
        raise UserError(changed, "give init_lora_weights=True")
    if any(chosen in layer.merged_adapters for _, layer in of_adapter):
        raise UserError(f"the adapter '{chosen}' is merged into the base", "call model.unmerge_adapter() before")
    shared = Counter(place_of(path) for path, _ in of_adapter)
    found: list[PeftLora] = [
        (PeftExperts if is_of_parameter(layer) else PeftLora)(_element(path, layer, chosen, shared), layer, chosen)
        for path, layer in of_adapter
    ]
    return sorted(found, key=lambda each: each.element.order)


def _changes_the_base(network: nn.Module, adapter: str) -> str | None:
    """The start of the adapter, if it subtracts the adapter from the weights of the base."""
    configs = [cast("Mapping[str, Any]", getattr(module, "peft_config", {})) for module in network.modules()]
    starts = (getattr(config[adapter], "init_lora_weights", None) for config in configs if adapter in config)
    return next((start for start in starts if isinstance(start, str) and start.startswith(_CHANGES)), None)


def path_of(path: str, layer: Any) -> str:
    """The path in the base model of what a layer of PEFT adapts."""
    return weight_path(path, layer) if is_of_parameter(layer) else path


def _element(path: str, layer: Any, adapter: str, shared: Counter[tuple[int, str]]) -> PeftElement:
    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    block, name = place_of(path)
    settings = Settings(
        layer.r[adapter],
        float(layer.lora_alpha[adapter]),
        float(getattr(layer.lora_dropout[adapter], "p", 0.0)),
        bool(layer.use_rslora.get(adapter, False)),
    )
    entries = sum(parameter.numel() for parameter in tensors_of(layer, adapter))
    name = name if shared[block, name] == 1 else path
    return PeftElement(block, name, "lora", path, A.shape[1], B.shape[0], settings, entries=entries)


def tuner_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path in the base model, layer) of each layer of PEFT."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return
    for path, module in network.named_modules():
        if isinstance(module, tuners.BaseTunerLayer):
            yield path.rpartition(PREFIX)[2], module
