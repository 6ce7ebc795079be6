"""The result of training -> an adapter folder, and configurations that make the same elements again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from heterolora.common.files import write_text
from heterolora.elements.adapt import HEADS, in_head
from heterolora.elements.config import ElementConfig, Site
from heterolora.elements.element import Element, Kind, Settings
from heterolora.elements.embedding import LoraEmbedding
from heterolora.elements.experts import LoraExperts
from heterolora.elements.linear import is_transposed
from heterolora.elements.low_rank import LoraLinear, LowRank
from heterolora.elements.peft_config import peft_config
from heterolora.elements.search_space import SearchSpace
from heterolora.elements.task import TASKS, Task
from model.checkpoint import KEY, ModelRecord, base_location
from model.peft_format import CONFIG, PREFIX, SHORTCUT_CONFIG, SHORTCUTS, WEIGHTS
from model.peft_format.vllm import Pair
from model.tensor_file import write_safetensors


def result_config(space: SearchSpace, kind: Kind, renormalize: bool = False) -> ElementConfig:
    """Return the layer-wise configuration of all places of a kind. Those that are off or empty are disabled."""
    found: dict[Site, Settings] = {(place.layer, place.name): Settings(disabled=True) for place in space.places(kind)}
    for each in space.of_kind(kind):
        settings = replace(each.element.settings, disabled=not each.enabled, adapter="default")
        found[each.element.layer, each.element.name] = settings
    return ElementConfig(kind, "layer", Settings(), found, renormalize)


def _layer(network: nn.Module, path: str) -> nn.Module:
    """The library's own module."""
    layer = network.get_submodule(path)
    return layer.base if isinstance(layer, LoraLinear | LoraExperts | LoraEmbedding) else layer


def _paths(elements: Sequence[Element], network: nn.Module) -> dict[str, str]:
    """Return key of an element -> path of PEFT's layer.

    PEFT wraps a module once for each of its parameters, the first of them innermost; see `adapter._take_experts`.
    """
    paths = {each.key: each.module for each in elements if each.experts == 1}
    of_experts = {each.module: each for each in elements if each.experts > 1}
    for host in dict.fromkeys(each.host for each in of_experts.values()):
        names = [f"{host}.{name}" for name, _ in _layer(network, host).named_parameters(recurse=False)]
        keys = [of_experts[name].key for name in reversed(names) if name in of_experts]
        paths |= {key: host + ".base_layer" * depth for depth, key in enumerate(keys)}
    return paths


def _name(element: Element, paths: Mapping[str, str], matrix: str) -> str:
    """PEFT's name of A or B of an element."""
    end = f"lora_embedding_{matrix}" if element.is_embedding else f"lora_{matrix}.weight"
    return f"{PREFIX}{paths[element.key]}.{end}"


def write_adapter(
    folder: Path,
    network: nn.Module,
    space: SearchSpace,
    task: Task,
    record: ModelRecord,
    shortcut: ElementConfig | None = None,
    lora: Sequence[LowRank | Pair] | None = None,
) -> None:
    """Write PEFT's files, and the files of the shortcuts if there are any, into an empty folder.

    Elements that are off are not written. If no LoRA element is on, the configuration names no module. This program
    can read it, PEFT cannot. `shortcut` is the configuration of the shortcuts, if the result has any or normalises
    once more after them. `lora` is written instead of the LoRA elements that are on.
    """
    lora = space.on("lora") if lora is None else lora
    trained_whole = [name for name, _ in network.named_children() if name in HEADS]
    elements = [low_rank.element for low_rank in lora]
    modules = [path for path, _ in network.named_modules()]
    two_parts = bool(network.config.is_encoder_decoder)  # type: ignore[union-attr]
    peft_type = TASKS[task].peft_type_of(two_parts)
    config = peft_config(elements, peft_type, base_location(record.base.name), trained_whole, modules)
    if any(is_transposed(_layer(network, element.host)) for element in elements):
        config["fan_in_fan_out"] = True
    write_text(folder / CONFIG, json.dumps({**config, "inference_mode": True}, indent=2) + "\n")
    paths = _paths(elements, network)
    tensors = {
        **{_name(each.element, paths, "A"): each.A for each in lora},
        **{_name(each.element, paths, "B"): each.B for each in lora},
        **{f"{PREFIX}{name}": parameter for name, parameter in network.named_parameters() if in_head(name)},
    }
    write_safetensors(folder / WEIGHTS, tensors, {KEY: json.dumps(record.as_dict())})
    if shortcut is not None:
        write_text(folder / SHORTCUT_CONFIG, shortcut.to_toml())
        shortcuts = {each.element.key: each for each in space.on("shortcut")}
        weights = {f"{key}.A": each.A for key, each in shortcuts.items()}
        weights |= {f"{key}.B": each.B for key, each in shortcuts.items()}
        write_safetensors(folder / SHORTCUTS, weights, {})
