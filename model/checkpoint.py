"""What a checkpoint of ours says about its model, read safely.

A `.ckpt` holds what was trained, never the frozen base, and a `Record` under the key `heterolora`: plain values only,
so that `torch.load(weights_only=True)` reads it and a pickle that would run code is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from heterolora.errors import UserError

KEY = "heterolora"


@dataclass(frozen=True)
class BaseSource:
    """Where a base model comes from.

    Attributes:
        name: hub name or folder of its configuration and tokenizer, and of its weights.
        pretrained: whether the weights are used; else they are drawn anew from `seed`.
        state_file: a state dict that holds the weights instead.
        seed: of weights that are made anew.
    """

    name: str
    pretrained: bool = True
    state_file: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Record:
    """The identity of a checkpoint's model.

    Attributes:
        action: what the run did: `train` or `train-dyrealloc`.
        options: the run's resolved options, as in its `config.toml`.
        base: where the base model came from.
        base_sha256: `fingerprint` of the base's frozen tensors as the base's files hold them.
        lora: the LoRA configuration as plain values, `None` for a plain model.
        shortcut: the shortcut configuration, `None` without shortcuts.
        on: keys of the elements that are on.
    """

    action: str
    options: dict[str, Any]
    base: BaseSource
    base_sha256: str
    lora: dict[str, Any] | None = None
    shortcut: dict[str, Any] | None = None
    on: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "on": list(self.on)}


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Everything in one of our checkpoints, tensors on the CPU; UserError if it is not one."""
    checkpoint = _load_torch(path)
    if not isinstance(checkpoint, Mapping) or KEY not in checkpoint or "state_dict" not in checkpoint:
        raise UserError(f"{path} is not a checkpoint of this program", "give a .ckpt that `train` wrote")
    return dict(checkpoint)


def record_of(checkpoint: Mapping[str, Any]) -> Record:
    values = checkpoint[KEY]
    return Record(**{**values, "base": BaseSource(**values["base"]), "on": tuple(values["on"])})


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors or torch file."""
    if path.suffix == ".safetensors":
        _require_file(path)
        try:
            return load_file(path)
        except SafetensorError as reason:
            raise UserError(f"{path} can't be read: {reason}", "give a whole safetensors file") from None
    state = _load_torch(path)
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict", "give a file of named tensors")
    return dict(state)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"{path} is not there", "give the path of a file")


def _load_torch(path: Path) -> Any:
    _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as reason:
        # Of what torch says, the first sentence: the next ones advise to load files with code in them.
        first_sentence = re.split(r"\n|\. ", str(reason).strip() or type(reason).__name__, maxsplit=1)[0]
        raise UserError(
            f"{path} can't be read as tensors and plain values ({first_sentence.rstrip('.')})",
            "give a whole file of this program; one that would run code is never loaded",
        ) from None
