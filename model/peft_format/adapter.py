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

_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<matrix>[AB])\.weight")
_UNSUPPORTED = {"lora_magnitude_vector": "DoRA", "lora_embedding_": "LoRA on an embedding", ".bias": "trained biases"}


@dataclass(frozen=True)
class LoraWeights:
    """The LoRA of one linear layer: its settings, A (r, in) and B (out, r)."""

    settings: Settings
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class Adapter:
    """The contents of an adapter folder.

    Attributes:
        settings: the configuration of PEFT.
        lora: LoRA by path of the linear layer in the base.
        head: values of the classification head by parameter name. Empty if there is none.
        record: the record that this program wrote into the folder. None for an adapter of another program.
        shortcut: configuration of the shortcuts. None if there are none.
        shortcut_weights: `layer_<i>.<name>.A` (r, d) and `….B` (d, r) of the shortcuts that are on.
    """

    folder: Path
    settings: PeftSettings
    lora: Mapping[str, LoraWeights]
    head: Mapping[str, Tensor]
    record: ModelRecord | None = None
    shortcut: ElementConfig | None = None
    shortcut_weights: Mapping[str, Tensor] = field(default_factory=dict)

    def base(self, moved: str | None, seed: int) -> BaseSource:
        """Returns the base model, at the location `moved` if that is given.

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
    """Returns the folder of an adapter. A name `owner/name` that is not a folder is downloaded from the hub."""
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
    """Reads an adapter folder.

    Raises UserError if a file is missing, truncated or of another kind, or if the files do not agree.
    """
    if not os.path.isdir(folder):
        raise UserError(f"'{folder}' is not a folder", f"give the folder of a PEFT adapter, with {CONFIG}")
    settings = read_settings(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file() and (folder / OLD_WEIGHTS).is_file():
        path = folder / OLD_WEIGHTS
    matrices, head = _sort(path, _read(path))
    lora = {module: _pair(path, module, settings, pair) for module, pair in sorted(matrices.items())}
    record = _read_record(path)
    if not lora and record is None:
        raise UserError(f"{path} holds no LoRA", "give the folder of a PEFT LoRA adapter")
    if not (folder / SHORTCUTS).is_file():
        if record is not None and str(record.options.get("model")).endswith("_ags"):
            raise UserError(f"'{folder}' has no {SHORTCUTS}, and its model has shortcuts", "give the complete folder")
        return Adapter(folder, settings, lora, head, record)
    shortcut = load(folder / SHORTCUT_CONFIG, "shortcut")
    return Adapter(folder, settings, lora, head, record, shortcut, _read(folder / SHORTCUTS))


def _read(path: Path) -> dict[str, Tensor]:
    state = read_state_dict(path)
    check_finite(state, str(path))
    return state


def _sort(path: Path, state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Returns A and B by module, and the values of the head by parameter name."""
    matrices: dict[str, dict[str, Tensor]] = {}
    head: dict[str, Tensor] = {}
    for key, values in state.items():
        name = key.removeprefix(PREFIX)
        if key == name:
            raise UserError(f"{path} holds {key}", f"expected a PEFT adapter, whose names begin with {PREFIX}")
        if found := _LORA.fullmatch(name):
            matrices.setdefault(found["module"], {})[found["matrix"]] = values
        elif in_head(name) and "lora_" not in name:
            head[name] = values
        else:
            what = next((title for mark, title in _UNSUPPORTED.items() if mark in name), "neither LoRA nor a head")
            raise UserError(
                f"{path} holds {name}: {what}", "only LoRA on linear layers and a classification head can be loaded"
            )
    return matrices, head


def _pair(path: Path, module: str, settings: PeftSettings, pair: Mapping[str, Tensor]) -> LoraWeights:
    """Returns the LoRA of one module, after a check of its shapes against the configuration."""
    element = settings.element(module)
    if pair.keys() != {"A", "B"}:
        raise UserError(f"{path} has only lora_{next(iter(pair))} of {module}", "expected lora_A and lora_B")
    a, b = pair["A"], pair["B"]
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise UserError(
            f"{path}: lora_A and lora_B of {module} have shapes {tuple(a.shape)} and {tuple(b.shape)}",
            "expected (r, in) and (out, r)",
        )
    if a.shape[0] != element.rank:
        raise UserError(
            f"{path}: {module} has rank {a.shape[0]}, but {CONFIG} says {element.rank}", "expected files of one adapter"
        )
    if settings.targets(module) is False:
        raise UserError(f"{path} has LoRA on {module}, which {CONFIG} does not name", "expected files of one adapter")
    return LoraWeights(element, a, b)


def _read_record(path: Path) -> ModelRecord | None:
    """Returns the record that this program wrote into the header of the file."""
    if path.suffix != ".safetensors":
        return None
    with reading("the header of", path, "give a complete adapter"), safe_open(path, "pt") as file:
        record = (file.metadata() or {}).get(KEY)
        return None if record is None else ModelRecord.from_dict(json.loads(record), path)
