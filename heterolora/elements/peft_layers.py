"""The LoRA layers of a PEFT model as elements: on and off, scored and chosen as those of this library."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from heterolora.common.errors import UserError, nearest
from heterolora.elements.element import Element, Settings, order_of
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.targets import place_of

if TYPE_CHECKING:
    from heterolora.elements.low_rank import LowRank

Probe = Callable[[Tensor, Tensor], Tensor]

_PREFIX = "base_model.model."  # of a module's path in a PEFT model, which may be a part of another module


@dataclass(frozen=True)
class PeftElement(Element):
    """An element whose cost is the number of its tensors' entries: DoRA has a magnitude, experts share a tensor."""

    entries: int = 0

    @property
    def parameters(self) -> int:
        return self.entries


class PeftLora:
    """One adapter of a LoRA layer of PEFT, with the attributes of `LowRank`.

    While it is off, the layer computes what it computes without this adapter, and the adapter's tensors have no
    gradient and require none, so that no optimizer changes them. Other adapters of the layer stay as they are.
    """

    def __init__(self, element: Element, layer: Any, adapter: str) -> None:
        self.element, self.layer, self.adapter = element, layer, adapter
        self._scaling: float = layer.scaling[adapter]
        self._importance = 1.0
        self._probe: Probe | None = None
        self._hook: Any = None

    @property
    def A(self) -> nn.Parameter:
        """(r, in)"""
        weight: nn.Parameter = self.layer.lora_A[self.adapter].weight
        return weight

    @property
    def B(self) -> nn.Parameter:
        """(out, r)"""
        weight: nn.Parameter = self.layer.lora_B[self.adapter].weight
        return weight

    @property
    def scaling(self) -> float:
        return self._scaling

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """All trainable tensors of the adapter: A, B, and what a variant such as DoRA adds."""
        return tuple(_tensors(self.layer, self.adapter))

    # ---- on and off

    @property
    def enabled(self) -> bool:
        return self.adapter in self.layer.active_adapters and not self.layer.disable_adapters

    @enabled.setter
    def enabled(self, on: bool) -> None:
        if on == self.enabled:
            return
        required = [(parameter, parameter.requires_grad) for parameter in self.layer.parameters()]
        others = [name for name in self.layer.active_adapters if name != self.adapter]
        self.layer.set_adapter([*others, self.adapter] if on else others)  # also sets `requires_grad` of all adapters
        for parameter, before in required:
            parameter.requires_grad_(before)

    @property
    def present(self) -> bool:
        return self.enabled or self._probe is not None

    def switch(self, on: bool) -> None:
        """Turn the adapter of this layer on or off. Off: its tensors keep their values and lose their gradients."""
        self.enabled = on
        for parameter in self.tensors:
            parameter.requires_grad_(on)
            if not on:
                parameter.grad = None

    # ---- for heuristics

    @property
    def importance(self) -> float:
        return self._importance

    @importance.setter
    def importance(self, factor: float) -> None:
        self._importance = factor
        self.layer.scaling[self.adapter] = self._scaling * factor

    @property
    def probe(self) -> Probe | None:
        return self._probe

    @probe.setter
    def probe(self, probe: Probe | None) -> None:
        self._probe = probe
        if probe is not None and self._hook is None:
            self._hook = self.layer.register_forward_hook(self._observe)
        elif probe is None and self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _observe(self, _layer: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        return y if self._probe is None else self._probe(args[0], y)


def has_peft_layers(network: nn.Module) -> bool:
    """Whether a layer of PEFT is in the network. Imports nothing: without PEFT there can be none."""
    return any(True for _ in _tuner_layers(network))


def peft_space(network: nn.Module, adapter: str | None = None) -> SearchSpace:
    """The LoRA layers of a PEFT model as a search space, by block.

    Args:
        network: a model with PEFT's LoRA layers, such as `peft.get_peft_model` returns.
        adapter: the adapter; by default the only one, or `default`.

    Raises:
        UserError: there are no LoRA layers, the adapter does not exist, or it is merged into the base.
    """
    # They have the attributes of `LowRank` that a search and the heuristics use.
    return SearchSpace(tuple(cast("list[LowRank]", _layers(network, adapter))))


def compact(network: nn.Module, adapter: str | None = None) -> nn.Module:
    """Remove the layers of the adapter that are off, in place, so that `save_pretrained` writes what is on only.

    The outputs do not change. PEFT, vLLM and a merge read the smaller adapter as any other.

    Raises:
        UserError: as `peft_space`, all layers are off, or a layer has other adapters too.
    """
    found = _layers(network, adapter)
    off = [each for each in found if not each.enabled]
    if not off:
        return network
    if len(off) == len(found):
        raise UserError("all layers of the adapter are off", "keep at least one of them on")
    for each in off:
        if len(each.layer.lora_A) > 1:
            several = f"{each.element.module} has several adapters ({', '.join(sorted(each.layer.lora_A))})"
            raise UserError(several, "delete the others before, with model.delete_adapter(name)")
    paths = {module: path for path, module in network.named_modules()}
    for each in off:
        network.set_submodule(paths[each.layer], each.layer.get_base_layer())
    name, kept = found[0].adapter, [each.layer for each in found if each.enabled]
    for owner in (module for module in network.modules() if name in getattr(module, "peft_config", ())):
        configs: Any = owner.peft_config
        paths = {module: path for path, module in owner.named_modules()}
        config = configs[name]
        config.target_modules = {paths[layer].removeprefix(_PREFIX) for layer in kept if layer in paths}
        config.exclude_modules = config.layers_to_transform = config.layers_pattern = None
    return network


def _layers(network: nn.Module, adapter: str | None) -> list[PeftLora]:
    layers = [(path, layer) for path, layer in _tuner_layers(network) if len(getattr(layer, "lora_A", ()))]
    if not layers:
        raise UserError("the model has no LoRA layers of PEFT", "give a model of peft.get_peft_model with LoraConfig")
    names = sorted({name for _, layer in layers for name in layer.lora_A})
    chosen = adapter if adapter is not None else names[0] if len(names) == 1 else "default"
    if chosen not in names:
        raise UserError(f"the model has no adapter '{chosen}'", nearest(chosen, names))
    of_adapter = [(path, layer) for path, layer in layers if chosen in layer.lora_A]
    if any(chosen in layer.merged_adapters for _, layer in of_adapter):
        raise UserError(f"the adapter '{chosen}' is merged into the base", "call model.unmerge_adapter() before")
    shared = Counter(place_of(path) for path, _ in of_adapter)
    found = [PeftLora(_element(path, layer, chosen, shared), layer, chosen) for path, layer in of_adapter]
    return sorted(found, key=lambda each: (each.element.layer, order_of(each.element.name)[0]))


def _element(path: str, layer: Any, adapter: str, shared: Counter[tuple[int, str]]) -> PeftElement:
    A, B = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    block, name = place_of(path)
    settings = Settings(
        layer.r[adapter],
        float(layer.lora_alpha[adapter]),
        float(getattr(layer.lora_dropout[adapter], "p", 0.0)),
        bool(layer.use_rslora.get(adapter, False)),
    )
    entries = sum(parameter.numel() for parameter in _tensors(layer, adapter))
    name = name if shared[block, name] == 1 else path
    return PeftElement(block, name, "lora", path, A.shape[1], B.shape[0], settings, entries)


def _tensors(layer: Any, adapter: str) -> Iterator[nn.Parameter]:
    for name in dict.fromkeys(layer.adapter_layer_names):  # DoRA names its magnitude twice
        parts = getattr(layer, name)
        if adapter in parts:
            part = parts[adapter]
            yield from (part,) if isinstance(part, torch.nn.Parameter) else part.parameters()


def _tuner_layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """(path in the base model, layer) of each layer of PEFT."""
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    if tuners is None:
        return
    for path, module in network.named_modules():
        if isinstance(module, tuners.BaseTunerLayer):
            yield path.rpartition(_PREFIX)[2], module
