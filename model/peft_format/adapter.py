"""Reads an adapter folder, written by PEFT or by this program, and checks that its files agree."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import safe_open
from torch import Tensor

from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.common.outside import reading
from heterolora.elements.adapt import in_head
from heterolora.elements.config import ElementConfig, load
from heterolora.elements.element import Settings
from model.checkpoint import KEY, BaseSource, ModelRecord, read_state_dict
from model.peft_format import CONFIG, FILES, OLD_WEIGHTS, PREFIX, SHORTCUT_CONFIG, SHORTCUTS, WEIGHTS
from model.peft_format.settings import PeftSettings, read_settings
from model.tensor_file import check_finite

_LORA = re.compile(r"(?P<module>.+)\.lora_(?:(?P<matrix>[AB])\.weight|embedding_(?P<of_embedding>[AB]))")
_OF_BASE = re.compile(r"(?P<module>.+)\.base_layer\.weight")
_WRAPPED = re.compile(r"(\.base_layer)+$")
_UNSUPPORTED = {"lora_magnitude_vector": "DoRA", ".bias": "trained biases"}


@dataclass(frozen=True)
class LoraWeights:
    """The LoRA of one linear layer: its settings, A (r, in) and B (out, r). That of a parameter with the weights of
    experts has A (experts · r, in) and B (out, r · experts).
    """

    settings: Settings
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter folder.

    Attributes:
        settings: the configuration of PEFT.
        lora: LoRA by path of the linear layer in the base, or by name of a parameter of experts.
        of_experts: path of a module -> A and B of its parameters, in their order in the module. PEFT's files do not
            name the parameters; `fit.named` does.
        head: values of the classification head by parameter name. Empty if there is none.
        record: the record that this program wrote into the folder. None for an adapter of another program.
        shortcut: configuration of the shortcuts. None if there are none.
        of_base: weights of the base by path of their module. PEFT writes those of an embedding that has LoRA.
        shortcut_weights: `layer_<i>.<name>.A` (r, d) and `….B` (d, r) of the shortcuts that are on.
    """

    folder: Path
    settings: PeftSettings
    lora: Mapping[str, LoraWeights]
    head: Mapping[str, Tensor]
    of_experts: Mapping[str, tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=dict)
    record: ModelRecord | None = None
    shortcut: ElementConfig | None = None
    shortcut_weights: Mapping[str, Tensor] = field(default_factory=dict)
    of_base: Mapping[str, Tensor] = field(default_factory=dict)

    def base(self, moved: str | None, seed: int) -> BaseSource:
        """Return the base model, at the location `moved` if that is given.

        `seed` is used for weights that the base lacks, if another program made the adapter. Raises UserError if the
        adapter names no base, or a revision of it.
        """
        settings = self.settings
        if self.record is not None:
            return self.record.base.moved_to(moved)
        if moved is None and settings.base is None:
            raise UserError(f"{settings.source} names no base model", "give its hub name or folder as --backbone-model")
        if moved is None and settings.revision is not None:
            raise UserError(
                f"{settings.source} needs revision '{settings.revision}' of {settings.base}",
                "download that revision, and give its folder as --backbone-model",
            )
        return BaseSource(moved or present(settings.base), seed=seed)


def find_adapter(name: str) -> Path:
    """Return the folder of an adapter. A name `owner/name` that is not a folder is downloaded from the hub."""
    if os.path.exists(name) or name.count("/") != 1 or name.startswith((".", "/")):
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except (OSError, ValueError, HTTPError):
        raise UserError(
            f"'{name}' is not a folder, and the hub gives no adapter of that name",
            "check the name and the connection (huggingface-cli login for a private one), or give a folder",
        ) from None


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter folder.

    Raises UserError if a file is missing, truncated or of another kind, or if the files do not agree.
    """
    if not os.path.isdir(folder):
        raise UserError(f"'{folder}' is not a folder", f"give the folder of a PEFT adapter, with {CONFIG}")
    settings = read_settings(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file() and (folder / OLD_WEIGHTS).is_file():
        path = folder / OLD_WEIGHTS
    matrices, head, of_base = _sort(path, _read(path))
    of_experts = _take_experts(path, settings, matrices)
    lora = {module: _pair(path, module, settings, pair) for module, pair in sorted(matrices.items())}
    record = _read_record(path)
    if not (lora or of_experts) and record is None:
        raise UserError(f"{path} holds no LoRA", "give the folder of a PEFT LoRA adapter")
    if not (folder / SHORTCUTS).is_file():
        if record is not None and str(record.options.get("model")).endswith("_ags"):
            raise UserError(f"'{folder}' has no {SHORTCUTS}, and its model has shortcuts", "give the complete folder")
        return Adapter(folder, settings, lora, head, of_experts, record, of_base=of_base)
    shortcut = load(folder / SHORTCUT_CONFIG, "shortcut")
    return Adapter(folder, settings, lora, head, of_experts, record, shortcut, _read(folder / SHORTCUTS), of_base)


def _read(path: Path) -> dict[str, Tensor]:
    state = read_state_dict(path)
    check_finite(state, str(path))
    return state


def _sort(
    path: Path, state: Mapping[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """Return A and B by module, the values of the head by parameter name, and weights of the base by module."""
    matrices: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    of_base: dict[str, Tensor] = {}
    for key, values in state.items():
        name = key.removeprefix(PREFIX)
        if key == name:
            raise UserError(f"{path} holds {key}", f"expected a PEFT adapter, whose names begin with {PREFIX}")
        if found := _LORA.fullmatch(name):
            matrices.setdefault(found["module"], {})[found["matrix"] or found["of_embedding"]] = values
        elif found := _OF_BASE.fullmatch(name):
            of_base[found["module"]] = values
        elif in_head(name) and "lora_" not in name:
            head[name] = values
        else:
            what = next((title for mark, title in _UNSUPPORTED.items() if mark in name), "neither LoRA nor a head")
            raise UserError(
                f"{path} holds {name}: {what}",
                "only LoRA on linear layers and the token embedding, and a classification head, can be loaded",
            )
    return matrices, head, of_base


def _take_experts(
    path: Path, settings: PeftSettings, matrices: dict[str, dict[str, Tensor]]
) -> dict[str, tuple[tuple[Tensor, Tensor], ...]]:
    """Take the LoRA of parameters out of `matrices`: path of a module -> A and B of its parameters, in order.

    PEFT wraps a module once for each of its parameters. The first parameter is in the innermost wrapper, whose path has
    the most parts `base_layer`.
    """
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for module in sorted(matrices, key=len, reverse=True):
        host = _WRAPPED.sub("", module)
        if settings.targets_parameter_of(host):
            found.setdefault(host, []).append(_matrices(path, module, matrices.pop(module)))
    return {host: tuple(found[host]) for host in sorted(found)}


def _pair(path: Path, module: str, settings: PeftSettings, pair: Mapping[str, Tensor]) -> LoraWeights:
    """Return the LoRA of one linear layer, after a check of its shapes against the configuration."""
    element, (a, b) = settings.element(module), _matrices(path, module, pair)
    check_rank(path, module, element, a)
    if settings.targets(module) is False:
        raise UserError(f"{path} has LoRA on {module}, which {CONFIG} does not name", "expected files of one adapter")
    return LoraWeights(element, a, b)


def _matrices(path: Path, module: str, pair: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return A and B, whose shapes fit together."""
    if pair.keys() != {"A", "B"}:
        raise UserError(f"{path} has only lora_{next(iter(pair))} of {module}", "expected lora_A and lora_B")
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UserError(
            f"{path}: lora_A and lora_B of {module} have shapes {tuple(a.shape)} and {tuple(b.shape)}",
            "expected (r, in) and (out, r)",
        )
    return a, b


def check_rank(path: Path, module: str, settings: Settings, a: Tensor, experts: int = 1) -> None:
    """Raise UserError unless A has as many rows as the rank of each expert needs."""
    if len(a) != settings.rank * experts:
        found = f"{path}: {module} has rank {len(a) / experts:g}, but {CONFIG} says {settings.rank}"
        raise UserError(found, "expected files of one adapter")


def _read_record(path: Path) -> ModelRecord | None:
    """Return the record that this program wrote into the header of the file."""
    if path.suffix != ".safetensors":
        return None
    with reading("the header of", path, "give a complete adapter"), safe_open(path, "pt") as file:
        record = (file.metadata() or {}).get(KEY)
        return None if record is None else ModelRecord.from_dict(json.loads(record), path)
