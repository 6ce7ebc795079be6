"""The linear layers of any network as LoRA elements, chosen as PEFT's `target_modules` chooses them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import nn

from heterolora.common.errors import UserError, nearest
from heterolora.common.patterns import names_module
from heterolora.elements.adapt import heads, on_experts
from heterolora.elements.element import Element, Settings
from heterolora.elements.found import stacked_weights
from heterolora.elements.linear import is_linear, widths_of

ALL_LINEAR = "all-linear"
_ALL_LAYERS = "model.named_modules()"


def lora_elements(
    network: nn.Module,
    target_modules: str | Sequence[str],
    settings: Settings,
    names: Mapping[str, str] | None = None,
    target_parameters: Sequence[str] = (),
) -> tuple[Element, ...]:
    """One LoRA element for each chosen linear layer, and for each chosen parameter with the weights of experts.

    The place of an element comes from the layer's path: the block is its first number, and the name is the part after
    that number (before it, if nothing follows; the number, if it is the whole path). If two layers would get the same
    place, the name is the whole path.

    Args:
        network: any network.
        target_modules: `all-linear` (every linear layer except the output layer), a list of paths or ends of paths, or
            a regular expression for whole paths.
        settings: the settings of every element.
        target_parameters: names of parameters with the weights of experts, or ends of names.
        names: part of a path after the block number -> name of the place; other parts are their own names.

    Raises:
        UserError: no linear layer is chosen, a name of `target_parameters` fits no experts, or the regular expression
            is invalid or takes too long.
    """
    linears = {path: module for path, module in network.named_modules() if path and is_linear(module)}
    outputs = _output_layers(network)
    if target_modules == ALL_LINEAR:
        chosen = [path for path in linears if linears[path] not in outputs]
    else:
        chosen = [path for path in linears if names_module(target_modules, path)]
    experts = _chosen_experts(network, target_parameters)
    if not chosen and not (experts and not target_modules):
        ends = sorted({path.rsplit(".", 1)[-1] for path in linears})
        found = "the network has no linear layer" if not linears else f"target_modules={target_modules!r} matches none"
        first = target_modules if isinstance(target_modules, str) else next(iter(target_modules), "")
        raise UserError(found, f"expected ends of paths of linear layers: {nearest(first, ends, _ALL_LAYERS)}")
    places = {path: place_of(path) for path in (*chosen, *experts)}
    shared = Counter(places.values())
    elements = []
    for path, (layer, name) in places.items():
        name = (names or {}).get(name, name) if shared[layer, name] == 1 else path
        if path in linears:
            elements.append(Element(layer, name, "lora", path, *widths_of(linears[path]), settings))
        else:
            elements.append(on_experts(network, (layer, name), path, settings))
    # Stable: within a block, canonical names in the order of every table, then the network's order.
    return tuple(sorted(elements, key=lambda element: element.order))


def capped(elements: Sequence[Element]) -> list[Element]:
    """The elements, each at the rank of a full matrix at most, with its scaling."""
    return [replace(each, settings=each.settings.at(min(each.rank, each.highest_rank))) for each in elements]


def _chosen_experts(network: nn.Module, target_parameters: Sequence[str]) -> list[str]:
    found = stacked_weights(network) if target_parameters else ()
    for wanted in target_parameters:
        if not any(names_module([wanted], path) for path in found):
            ends = sorted({path.rpartition(".")[2] for path in found})
            expected = f"expected ends of names of parameters: {nearest(wanted, ends)}" if ends else "leave it out"
            raise UserError(f"target_parameters: '{wanted}' is the name of no weight of experts", expected)
    return [path for path in found if names_module(target_parameters, path)]


def _output_layers(network: nn.Module) -> list[nn.Module | None]:
    """The layers that `all-linear` skips: the language-model head and a classification head."""
    embeddings = getattr(network, "get_output_embeddings", lambda: None)()
    return [embeddings, *(module for head in heads(network) for module in head.modules())]


def place_of(path: str) -> tuple[int, str]:
    """(block, name): `model.layers.3.mlp.up_proj` -> (3, `mlp.up_proj`)."""
    found = re.fullmatch(r"(?:(.*?)\.)??(\d+)(?:\.(.*))?", path)
    return (int(found[2]), found[3] or found[1] or path) if found else (0, path)


def not_scored(model: nn.Module, scored: Sequence[Element]) -> Iterator[str]:
    """Sentences about layers that a user may expect among the scored ones."""
    modules = {element.module for element in scored}
    if left := [name for name in stacked_weights(model) if name not in modules]:
        listed = f"{', '.join(left[:4])}{' …' if len(left) > 4 else ''}"
        how = f"name them in target_parameters, such as {left[0].rpartition('.')[2]!r}"
        yield f"{len(left)} weights of experts are not scored: {listed}; {how}"
    named = {module: name for name, module in model.named_children()}
    trains = {named[head]: [parameter.requires_grad for parameter in head.parameters()] for head in heads(model)}
    if frozen := [name for name, found in trains.items() if found and not any(found)]:
        listed = ", ".join(frozen)
        yield f"the head ({listed}) is frozen and not scored: if it is new, train it, for example as modules_to_save"
