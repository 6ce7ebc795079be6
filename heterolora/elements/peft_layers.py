"""One LoRA layer of PEFT as an element: on and off, and scored as those of this library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from heterolora.elements.element import Element

Probe = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PeftElement(Element):
    """An element whose cost is the number of its tensors' entries: DoRA has a magnitude, experts share a tensor."""

    entries: int = 0

    @property
    def parameters(self) -> int:
        return self.entries

    def single(self, index: int) -> Self:
        return replace(super().single(index), entries=self.entries // self.rank)


class PeftLora:
    """One adapter of a LoRA layer of PEFT, with the attributes of `LowRank`.

    While it is off, the layer computes what it computes without this adapter, and the adapter's tensors have no
    gradient and require none, so that no optimizer changes them. Other adapters of the layer stay as they are.
    """

    def __init__(self, element: PeftElement, layer: Any, adapter: str) -> None:
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
    def base(self) -> nn.Module:
        """The layer that the adapter is added to."""
        layer: nn.Module = self.layer.get_base_layer()
        return layer

    @property
    def scaling(self) -> float:
        return self._scaling

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """All trainable tensors of the adapter: A, B, and what a variant such as DoRA adds."""
        return tuple(tensors_of(self.layer, self.adapter))

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


def tensors_of(layer: Any, adapter: str) -> Iterator[nn.Parameter]:
    for name in dict.fromkeys(layer.adapter_layer_names):  # DoRA names its magnitude twice
        parts = getattr(layer, name)
        if adapter in parts:
            part = parts[adapter]
            yield from (part,) if isinstance(part, torch.nn.Parameter) else part.parameters()
