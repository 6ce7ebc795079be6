"""Checkpoints: what a `.ckpt` file of this program holds, and reading it safely.

A `.ckpt` holds the trained weights, never the frozen base, and a `Record` under the key `heterolora`. It has plain
values only, so that `torch.load(weights_only=True)` reads it and refuses a pickle that would run code.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from heterolora.config import ElementConfig, parse
from heterolora.element import SHORTCUTS, Kind
from heterolora.errors import UserError

KEY = "heterolora"
_NETWORK = "network."  # a checkpoint has the names of the LightningModule, which holds the network under this name
KINDS: tuple[Kind, ...] = ("lora", "shortcut")


@dataclass(frozen=True)
class BaseSource:
    """The origin of a base model.

    Attributes:
        name: hub name or folder of its configuration, tokenizer and weights.
        pretrained: whether the weights are read. Otherwise they are random, drawn from `seed`.
        state_file: a state dict with other weights.
    """

    name: str
    pretrained: bool = True
    state_file: str | None = None
    seed: int = 0

    def moved_to(self, location: str | None) -> BaseSource:
        """Returns the same base at another location. None means that it has not moved."""
        return self if location is None else BaseSource(location, seed=self.seed)


@dataclass(frozen=True)
class Record:
    """The identity of a trained model.

    Attributes:
        action: the action that trained it: `train` or `train-dyrealloc`.
        options: the run's resolved options, as in its `config.toml`.
        base: the origin of the base model.
        base_sha256: hash (hex) of the base's frozen tensors, as stored in its files.
        configs: the LoRA and the shortcut configuration; empty for a plain model.
        on: keys of the elements that are on.
        run: the id of the run; None in files of versions without ids.
    """

    action: str
    options: dict[str, Any]
    base: BaseSource
    base_sha256: str
    configs: Mapping[Kind, ElementConfig] = field(default_factory=dict)
    on: tuple[str, ...] = ()
    run: str | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Record:
        """Returns the record with the plain values of `as_dict`."""
        configs = {kind: parse(values[kind], kind) for kind in KINDS if values.get(kind) is not None}
        base, sha256, on = BaseSource(**values["base"]), values["base_sha256"], tuple(values["on"])
        return cls(values["action"], values["options"], base, sha256, configs, on, values.get("run"))

    def as_dict(self) -> dict[str, Any]:
        documents = {kind: self.configs[kind].to_document() if kind in self.configs else None for kind in KINDS}
        values = {"action": self.action, "options": self.options, "base": asdict(self.base)}
        return {**values, "base_sha256": self.base_sha256, **documents, "on": list(self.on), "run": self.run}

    @property
    def renormalizes(self) -> bool:
        """Whether the blocks normalise once more after the cross-layer shortcuts."""
        return "shortcut" in self.configs and self.configs["shortcut"].renormalize

    @property
    def has_shortcuts(self) -> bool:
        """Whether a shortcut is on, or the blocks normalise once more."""
        return self.renormalizes or any(map(_is_shortcut, self.on))

    def without_shortcuts(self) -> Record:
        options = {name: value for name, value in self.options.items() if name != "shortcut_config"}
        options["model"] = options["model"].removesuffix("_ags")
        configs = {kind: config for kind, config in self.configs.items() if kind != "shortcut"}
        on = tuple(key for key in self.on if not _is_shortcut(key))
        return replace(self, options=options, configs=configs, on=on)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of this program, as read from its file.

    Attributes:
        weights: parameter name of the network -> value, for all trained parameters.
        step: number of optimizer steps before it.
        contents: everything that Lightning needs to resume the run.
    """

    path: Path
    record: Record
    weights: Mapping[str, Tensor] = field(repr=False)
    step: int
    contents: dict[str, Any] = field(repr=False)

    @property
    def batches_into_epoch(self) -> int:
        """The number of trained batches of an unfinished epoch. It is 0 between epochs."""
        progress = self.contents["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return 0 if progress["is_last_batch"] else progress["current"]["ready"]

    def without_shortcuts(self) -> Checkpoint:
        """Returns the model without its shortcuts, as LoRA alone."""
        weights = {name: tensor for name, tensor in self.weights.items() if ".shortcuts." not in name}
        return replace(self, record=self.record.without_shortcuts(), weights=weights)


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU. Raises UserError if the file is not a checkpoint of this program."""
    return checkpoint_of(path, _read(path))


def checkpoint_of(path: Path, contents: Any) -> Checkpoint:
    """Returns the checkpoint with these contents. Raises UserError if this program did not make them."""
    if not isinstance(contents, Mapping) or KEY not in contents or "state_dict" not in contents:
        raise UserError(f"{path} is not a checkpoint of this program", "give a .ckpt file that `train` wrote")
    weights = {name.removeprefix(_NETWORK): tensor for name, tensor in contents["state_dict"].items()}
    return Checkpoint(path, Record.from_dict(contents[KEY]), weights, contents.get("global_step", 0), dict(contents))


def keep_trained(contents: dict[str, Any], trained: Iterable[str], record: Record) -> None:
    """Reduces the contents of a checkpoint that Lightning is about to save to the trained weights, and adds the record.

    `trained` are the names of the trained parameters of the network.
    """
    state = contents["state_dict"]
    contents["state_dict"] = {f"{_NETWORK}{name}": state[f"{_NETWORK}{name}"] for name in trained}
    contents[KEY] = record.as_dict()


def _is_shortcut(key: str) -> bool:
    return key.split(".")[-1] in SHORTCUTS


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from a safetensors or torch file. Raises UserError if the file is not one."""
    state = _read(path)
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} holds no state dict", "give a file of named tensors")
    return dict(state)


def check_fit(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], misfit: str, advice: str, optional: Collection[str] = ()
) -> None:
    """Raises UserError unless the given tensors have the names and shapes of a network's own tensors.

    The names in `optional` may be missing. `misfit` and `advice` are the start and the end of the message.
    """
    missing, unknown = sorted(own.keys() - given.keys() - set(optional)), sorted(given.keys() - own.keys())
    if missing or unknown:
        raise UserError(
            f"{misfit}: {len(missing)} weights missing ({', '.join(missing[:1]) or 'none'}), "
            f"{len(unknown)} unknown ({', '.join(unknown[:1]) or 'none'})",
            advice,
        )
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            expected = f"expected {tuple(own[name].shape)}; {advice}"
            raise UserError(f"{misfit}: {name} has shape {tuple(tensor.shape)}", expected)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is not there", "give the path of a file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as reason:
        # The first sentence only: the next ones advise loading files that run code.
        first_sentence = re.split(r"\n|\. ", str(reason).strip() or type(reason).__name__, maxsplit=1)[0]
        raise UserError(
            f"{path} can't be read as tensors and plain values ({first_sentence.rstrip('.')})",
            "give a complete file; a file that would run code is never loaded",
        ) from None
