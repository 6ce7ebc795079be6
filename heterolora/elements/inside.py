"""The LoRA elements that a network holds: the layers of PEFT, or else the library's own."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from heterolora.common.checks import instance
from heterolora.common.errors import UserError
from heterolora.elements.low_rank import LoraLinear
from heterolora.elements.own_layers import compact_own, own_layers, own_space
from heterolora.elements.peft_compact import check_alone, compact_peft
from heterolora.elements.peft_layers import PeftLora
from heterolora.elements.peft_space import has_peft_layers, lora_layers, peft_space
from heterolora.elements.rank_units import Units, rank_units
from heterolora.elements.search_space import SearchSpace


def has_elements(network: nn.Module) -> bool:
    return has_peft_layers(network) or any(True for _ in own_layers(network))


def space_of(network: nn.Module, adapter: str | None = None) -> SearchSpace:
    """The LoRA layers of a network as a search space, by block; `adapter` is that of a PEFT model, see `peft_space`.

    Raises:
        UserError: there are no LoRA layers, or not this adapter.
    """
    if has_peft_layers(network):
        return peft_space(network, adapter)
    if adapter is not None:
        raise UserError(f"the model has no adapter '{adapter}'", "leave the adapter out: only PEFT's layers have names")
    return own_space(network)


def bases_of(network: nn.Module, space: SearchSpace) -> Iterator[nn.Module | None]:
    """What each element of a network is added to: a layer of the base, or the `LoraExperts` of a layer. None for a
    shortcut.
    """
    hosts = {low_rank: network.get_submodule(path) for path, low_rank in own_layers(network)}
    for each in space:
        host = each.base if isinstance(each, PeftLora) else hosts.get(each)
        yield host.base if isinstance(host, LoraLinear) else host


def units_of(network: nn.Module, adapter: str | None, units: Units) -> SearchSpace:
    """`space_of`, or the single ranks of its elements: those with zeros in A and B are off, see `RankUnit`.

    Raises:
        UserError: as `space_of`, or an element has tensors that belong to no single rank.
    """
    space = space_of(network, adapter)
    if units == "element":
        return space
    for each in space:
        if len(each.tensors) != 2:
            found = f"the LoRA layer {each.element.module} has more than A and B, such as the magnitude of DoRA"
            raise UserError(found, "give units='element'")
        each.switch(bool(each.A.detach().any()))
    return rank_units(space)


def check_compact(network: nn.Module, adapter: str | None) -> None:
    """Raise UserError if `compact` could not remove every layer."""
    if has_peft_layers(network):
        check_alone(lora_layers(network, adapter))


def compact(network: nn.Module, adapter: str | None = None) -> nn.Module:
    """Remove the LoRA layers that are off, and the ranks with zeros in A and B, in place.

    The outputs do not change. Of a PEFT model, it is the layers of the adapter, and `save_pretrained` then writes what
    is on only: PEFT, vLLM and a merge read the smaller adapter as any other. Of a model of `heterolora.adapt`, each
    layer that is off is the layer that it was before.

    Raises:
        UserError: there are no LoRA layers, all of them are off, or a layer that is off has other adapters too.
    """
    instance(nn.Module, "a torch.nn.Module").check("compact", "model", network)
    if has_peft_layers(network):
        compact_peft(network, adapter)
    else:
        compact_own(network, space_of(network, adapter))
    return network
