"""Writes the result of training as an adapter folder, and as configurations with the same elements."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from dataset.spec import Task
from heterolora.adapt import HEADS
from heterolora.config import ElementConfig, ElementSettings, Kind
from heterolora.files import write_text
from heterolora.peft_config import peft_config
from heterolora.search_space import Element, SearchSpace
from model.checkpoint import KEY, Record
from model.load import in_head
from model.peft_format import CONFIG, PREFIX, SHORTCUT_CONFIG, SHORTCUTS, WEIGHTS


def settings_of(element: Element) -> ElementSettings:
    """Returns the settings of an element, which may be on or off."""
    low_rank = element.low_rank
    return ElementSettings(
        low_rank.rank, low_rank.alpha, low_rank.dropout, low_rank.use_rslora, disabled=not low_rank.enabled
    )


def result_config(space: Iterable[Element], kind: Kind, renormalize: bool = False) -> ElementConfig:
    """Returns the layer-wise configuration of the elements of a kind. Elements that are off are disabled."""
    sites = {(element.layer, element.name): settings_of(element) for element in space if element.kind == kind}
    return ElementConfig(kind, "layer", ElementSettings(), sites, renormalize)


def sites_on(space: Iterable[Element]) -> dict[str, ElementSettings]:
    """Returns the LoRA elements that are on, by path of the linear layer."""
    return {element.module: settings_of(element) for element in on(space, "lora")}


def on(space: Iterable[Element], kind: Kind) -> tuple[Element, ...]:
    """Returns the elements of a kind that are on."""
    return tuple(element for element in space if element.kind == kind and element.low_rank.enabled)


def base_location(name: str) -> str:
    """Returns the location of the base for other programs: the absolute path of a folder, or the hub name."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def write_adapter(
    folder: Path,
    network: nn.Module,
    space: SearchSpace,
    task: Task,
    record: Record,
    shortcut: ElementConfig | None = None,
) -> None:
    """Writes PEFT's files, and those of the shortcuts if there are any, into an empty folder.

    If no LoRA element is on, the configuration names no module. This program can read it, but PEFT cannot.

    Args:
        folder: the folder.
        network: the adapted network.
        space: its search space. Elements that are off are not written.
        task: the task of the network.
        record: the record of the run, which is stored with the weights.
        shortcut: configuration of the shortcuts, if there are any or if the blocks normalise again.
    """
    trained_whole = [name for name, _ in network.named_children() if name in HEADS]
    config = peft_config(sites_on(space), task, base_location(record.base.name), trained_whole)
    write_text(folder / CONFIG, json.dumps({**config, "inference_mode": True}, indent=2) + "\n")
    tensors = {
        f"{PREFIX}{element.module}.lora_{which}.weight": matrix
        for element in on(space, "lora")
        for which, matrix in (("A", element.low_rank.A), ("B", element.low_rank.B))
    }
    tensors |= {f"{PREFIX}{name}": parameter for name, parameter in network.named_parameters() if in_head(name)}
    _save(folder / WEIGHTS, tensors, {KEY: json.dumps(record.as_dict())})
    if shortcut is not None:
        write_text(folder / SHORTCUT_CONFIG, shortcut.to_toml())
        _save(
            folder / SHORTCUTS,
            {
                f"{element.key}.{which}": matrix
                for element in on(space, "shortcut")
                for which, matrix in (("A", element.low_rank.A), ("B", element.low_rank.B))
            },
        )


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, path, {"format": "pt", **(metadata or {})})
