"""The library's own LoRA elements in a network: found there again, and removed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from heterolora.common.errors import UserError
from heterolora.elements.experts import LoraExperts
from heterolora.elements.low_rank import LoraLinear, LowRank
from heterolora.elements.rank_units import compact_ranks
from heterolora.elements.search_space import SearchSpace


def own_layers(network: nn.Module) -> Iterator[tuple[str, LowRank]]:
    """(path of the `LoraLinear` or `LoraExperts` in the network, its element), in the network's order."""
    for path, module in network.named_modules():
        if isinstance(module, LoraLinear):
            yield path, module.low_rank
        elif isinstance(module, LoraExperts):
            yield from ((path, module.low_rank_of(name)) for name in module.low_ranks)


def own_space(network: nn.Module) -> SearchSpace:
    """The elements of a network as a search space, by block. Where two of them have one place, their paths name them.

    Raises UserError if there is none.
    """
    layers = list(own_layers(network))
    if not layers:
        raise UserError("the model has no LoRA layers", "give a PEFT model, or one of heterolora.adapt")
    shared = Counter(low_rank.element.key for _, low_rank in layers)
    for path, low_rank in layers:
        if shared[low_rank.element.key] > 1:  # of two networks that were adapted each on its own
            low_rank.element = replace(low_rank.element, name=f"{path}.{low_rank.element.name}")
    found = (low_rank for _, low_rank in layers)
    return SearchSpace(tuple(sorted(found, key=lambda each: each.element.order)))


def compact_own(network: nn.Module, space: SearchSpace) -> None:
    """Remove the elements of `own_space` that are off, and the ranks with zeros, in place.

    Raises UserError if all elements are off.
    """
    if not space.on():
        raise UserError("all LoRA layers are off", "keep at least one of them on")
    compact_ranks(space)
    without_elements(network, off_only=True)


def without_elements(network: nn.Module, off_only: bool = False) -> None:
    """Put the layers of the base back in the place of those with elements, in place; `off_only`: with elements that are
    off.
    """
    for path, module in list(network.named_modules()):
        if isinstance(module, LoraExperts):
            for name in list(module.low_ranks):
                if not (off_only and module.low_rank_of(name).enabled):
                    del module.low_ranks[name]
            left = bool(module.low_ranks)
        elif isinstance(module, LoraLinear):
            left = off_only and module.low_rank.enabled
        else:
            continue
        if not left:
            network.set_submodule(path, module.base)
