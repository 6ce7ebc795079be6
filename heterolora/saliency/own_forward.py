"""Layers compute with the forward pass of their class, not with a kernel that took its place.

The package `kernels`, which transformers uses, exchanges the forward pass of single layers for kernels of the hub: some
for training and others, which may have no backward pass, for inference. Scores need gradients through every layer, and
must not depend on the kernels that a network has at the moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

from torch import nn

from heterolora.common.errors import UserError


@contextmanager
def own_forward(network: nn.Module) -> Iterator[None]:
    """Inside the block, no layer of the network computes with a kernel. Afterwards each has its kernel again."""
    kept = [(layer, place, vars(layer)[place]) for layer, place in _exchanged(network)]
    try:
        for layer, place, _ in kept:
            setattr(layer, place, MethodType(type(layer).forward, layer))
        yield
    finally:
        for layer, place, kernel in kept:
            setattr(layer, place, kernel)


def networks_with_kernels(network: nn.Module) -> list[Any]:
    """The networks of transformers in it that exchange kernels when their mode changes."""
    return [module for module in network.modules() if getattr(module, "use_kernels", False) is True]


def train_with_kernels_of_training(networks: Sequence[Any]) -> None:
    """Put kernels of training in place of those of inference, in networks that are in training.

    A trainer that restores the modes of modules one by one after a validation, as Lightning does, leaves those of
    inference in place. Raises UserError if a network does not say which it has, as before transformers 5.25.
    """
    for network in networks:
        kind = getattr(network, "kernels_mode", None)
        if kind is None:
            found = "the network computes with kernels of the hub, and may train with those of inference"
            raise UserError(found, "load it with use_kernels=False, or use transformers 5.25")
        if network.training and type(kind).TRAINING not in kind:
            network.kernels_mode = type(kind).TRAINING


def _exchanged(network: nn.Module) -> list[tuple[Any, str]]:
    """(a layer whose forward pass can be exchanged, an attribute that holds one for it).

    Functions that are exchanged, such as that of rotary embeddings, are layers that belong to a module without being
    submodules. The hooks of accelerate take the place of `forward`, and call `_old_forward`.
    """
    modules = list(network.modules())
    functions = [function for module in modules for function in vars(module).get("_kernel_funcs", {}).values()]
    layers = [layer for layer in (*modules, *functions) if hasattr(type(layer), "kernel_layer_name")]
    places = [(layer, place) for layer in layers for place in ("forward", "_old_forward")]
    return [(layer, place) for layer, place in places if isinstance(vars(layer).get(place), MethodType)]
