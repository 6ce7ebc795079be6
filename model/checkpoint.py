"""Checkpoints: what a `.ckpt` file of this program holds, and reading it safely.

A `.ckpt` holds the trained weights, never the frozen base, and a `ModelRecord` under the key `heterolora`. It has plain
values only, so that `torch.load(weights_only=True)` reads it and refuses a pickle that would run code.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heterolora import __version__
from heterolora.common.checks import TEXT, TRUTH, Condition, check_keys, whole_number
from heterolora.common.errors import UserError, shown
from heterolora.elements.config import ElementConfig, parse_config
from heterolora.elements.element import KINDS, SHORTCUTS, Kind
from model.tensor_file import check_finite, read_tensors

KEY = "heterolora"
_NETWORK = "network."  # a checkpoint has the names of the LightningModule, which holds the network under this name

_TEXT_OPTIONS = ("model", "dataset", "lora_config", "shortcut_config")


def _plain_options(value: Any) -> bool:
    """Whether it is a table of plain values. The options check their own values where they are used."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(key, str) and isinstance(each, str | int | float) for key, each in value.items())
        and all(isinstance(value.get(key, ""), str) for key in _TEXT_OPTIONS)
    )


_TABLE = Condition(lambda value: isinstance(value, Mapping), "a table")
_RECORD: Mapping[str, Condition] = {
    "action": TEXT,
    "options": Condition(_plain_options, "a table of the options' values"),
    "base": _TABLE,
    "base_sha256": TEXT,
    "run": Condition(lambda value: value is None or isinstance(value, str), "the id of a run"),
    "on": Condition(lambda value: isinstance(value, list | tuple) and all(map(TEXT.valid, value)), "a list of names"),
}
_BASE: Mapping[str, Condition] = {
    "name": TEXT,
    "pretrained": TRUTH,
    "state_file": Condition(lambda value: value is None or isinstance(value, str), "a path"),
    "seed": whole_number(0),
}
# What Lightning resumes from.
_STATE: Mapping[str, Condition] = {
    "state_dict": _TABLE,
    "global_step": whole_number(0),
    "epoch": whole_number(0),
    "loops": _TABLE,
    "callbacks": _TABLE,
    "optimizer_states": Condition(lambda value: isinstance(value, list), "a list"),
    "lr_schedulers": Condition(lambda value: isinstance(value, list), "a list"),
}


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
        """Return the same base at another location, whose own weights replace a state dict. None or its own location
        means that it has not moved.
        """
        if location is None or base_location(location) == self.name:
            return self
        return BaseSource(location, self.pretrained or self.state_file is not None, seed=self.seed)


def base_location(name: str) -> str:
    """Return a name of the base that holds in every folder: the absolute path of a folder or file, or the hub name."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def step_of(path: Path) -> int | None:
    """Return the optimizer step of a checkpoint without reading its tensors; None if the file is damaged."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("global_step")
    except Exception:  # of torch, about a file that is cut or no checkpoint
        return None
    return found if isinstance(found, int) else None


@dataclass(frozen=True)
class ModelRecord:
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
    def from_dict(cls, values: Any, source: str | Path) -> ModelRecord:
        """Return the record with the plain values of `as_dict`; `source` is the name of its file in messages.

        Raises UserError if another version wrote values that this one does not know, or a value has the wrong type.
        """
        version = values.get("version") if isinstance(values, Mapping) else None
        try:
            own = {key: values[key] for key in _RECORD if key in values} if isinstance(values, Mapping) else values
            check_keys("the record", _RECORD, own, "expected the record of a model", optional=("run",))
            base = BaseSource(**check_keys("base", _BASE, {**asdict(BaseSource("")), **own["base"]}, "expected a base"))
            configs = {
                kind: parse_config(values[kind], kind, any_name=True) for kind in KINDS if values.get(kind) is not None
            }
        except UserError as error:
            raise UserError(
                f"{source} has a record that cannot be read: {error.found} ({error.expected}); it was written by "
                f"version {version if isinstance(version, str) else 'unknown'}, this is version {__version__}",
                "use that version, or a file that is not damaged",
            ) from error
        on, run = tuple(own["on"]), own.get("run")
        return cls(own["action"], dict(own["options"]), base, own["base_sha256"], configs, on, run)

    def as_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"version": __version__, "action": self.action, "options": self.options}
        values |= {"base": asdict(self.base), "base_sha256": self.base_sha256, "lora": None, "shortcut": None}
        values |= {kind: config.to_document() for kind, config in self.configs.items()}
        return values | {"on": list(self.on), "run": self.run}

    @property
    def renormalizes(self) -> bool:
        """Whether the blocks normalise once more after the cross-layer shortcuts."""
        return "shortcut" in self.configs and self.configs["shortcut"].renormalize

    @property
    def has_shortcuts(self) -> bool:
        """Whether a shortcut is on, or the blocks normalise once more."""
        return self.renormalizes or any(map(_is_shortcut, self.on))

    def without_shortcuts(self) -> ModelRecord:
        options = {name: value for name, value in self.options.items() if name != "shortcut_config"}
        options["model"] = options["model"].removesuffix("_ags")
        configs = dict(self.configs)
        configs.pop("shortcut", None)
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
    record: ModelRecord
    weights: Mapping[str, Tensor] = field(repr=False)
    step: int
    contents: dict[str, Any] = field(repr=False)

    @property
    def batches_into_epoch(self) -> int:
        """The number of trained batches of an unfinished epoch. It is 0 between epochs.

        Raises UserError if the file does not say it.
        """
        progress = self._of_loop("epoch_loop.batch_progress")
        try:
            return 0 if progress["is_last_batch"] else int(progress["current"]["ready"])
        except (LookupError, TypeError, ValueError):
            raise UserError(
                f"{self.path} has no position in the training set", "give a last.ckpt that a run wrote"
            ) from None

    @property
    def epochs(self) -> int:
        """The number of trained epochs. An unfinished one counts. It is 0 if the file does not say it."""
        finished = self._of_loop("epoch_progress", "current", "processed")
        return finished + (self.batches_into_epoch > 0) if isinstance(finished, int) else 0

    @property
    def loader_state(self) -> Mapping[str, Any]:
        """What the loader of the training rows saved. Empty if it saved nothing."""
        states = self._of_loop("state_dict", "combined_loader")
        only = states[0] if isinstance(states, list | tuple) and len(states) == 1 else None
        return only if isinstance(only, Mapping) else {}

    def _of_loop(self, *keys: str) -> Any:
        """Return what Lightning saved of its loop under these keys, one inside the other. None if it is not there."""
        try:
            return functools.reduce(operator.getitem, keys, self.contents["loops"]["fit_loop"])
        except (LookupError, TypeError):
            return None

    def without_shortcuts(self) -> Checkpoint:
        """Return the model without its shortcuts, as LoRA alone."""
        weights = {name: tensor for name, tensor in self.weights.items() if ".shortcuts." not in name}
        return replace(self, record=self.record.without_shortcuts(), weights=weights)


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises UserError if the file is not a checkpoint of this program."""
    return checkpoint_of(path, read_tensors(path))


def checkpoint_of(path: Path, contents: Any) -> Checkpoint:
    """Return the checkpoint with these contents. Raises UserError if this program did not make them."""
    if not isinstance(contents, Mapping) or KEY not in contents or "state_dict" not in contents:
        raise UserError(f"{path} is not a checkpoint of this program", "give a .ckpt file that `train` wrote")
    record = ModelRecord.from_dict(contents[KEY], path)
    for key, form in _STATE.items():
        if key in contents:
            form.check(str(path), key, contents[key])
    for name, tensor in contents["state_dict"].items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not _is_plain(tensor):
            raise UserError(f"{path}: its weight {shown(name)} is no tensor of real numbers", "give a complete file")
    weights = {name.removeprefix(_NETWORK): tensor for name, tensor in contents["state_dict"].items()}
    check_finite(weights, str(path))
    return Checkpoint(path, record, weights, contents.get("global_step", 0), dict(contents))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_quantized


def keep_trained(contents: dict[str, Any], trained: Iterable[str], record: ModelRecord) -> None:
    """Reduce the contents of a checkpoint that Lightning is about to save to the trained weights, and add the record.

    `trained` are the names of the trained parameters of the network. Of a plain model that is sharded, only the first
    process has them, and saves them.
    """
    state = contents["state_dict"]
    contents["state_dict"] = {f"{_NETWORK}{name}": state[f"{_NETWORK}{name}"] for name in trained if state}
    contents[KEY] = record.as_dict()


def _is_shortcut(key: str) -> bool:
    return key.split(".")[-1] in SHORTCUTS


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a safetensors or torch file. Raises UserError if the file is not one."""
    state = read_tensors(path)
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        for name, value in state.items()
    ):
        raise UserError(f"{path} holds no state dict", "give a file of named tensors")
    return dict(state)


def check_fit(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], misfit: str, advice: str, optional: Collection[str] = ()
) -> None:
    """Raise UserError unless the given tensors have the names and shapes of a network's own tensors.

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
