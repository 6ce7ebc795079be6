"""Where a model comes from: the checkpoint, adapter or base that `--load` names, and what is recorded about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model.family as families
from actions.command.command import Command
from actions.request.resuming import continued
from actions.run.run_folder import CHECKPOINTS, RUN, measured_checkpoint
from heterolora.common.errors import UserError

if TYPE_CHECKING:
    from model.checkpoint import BaseSource, Checkpoint
    from model.peft_format.adapter import Adapter

TOY_BASE = Path(__file__).resolve().parents[2] / "model" / "toy_opt"
_TOY = "no --load: the base is the tiny OPT model of this program"


@dataclass(frozen=True)
class Origin:
    """What `--load` names. Of a base model nothing is recorded."""

    base: BaseSource  # if it moved, at `--backbone-model`
    recorded: Mapping[str, Any] = field(default_factory=dict)  # options that the checkpoint or adapter records
    checkpoint: Checkpoint | None = None
    adapter: Adapter | None = None
    stated: Mapping[str, Any] = field(default_factory=dict)  # options that the run states, whatever is given
    notes: tuple[str, ...] = ()  # lines to print


def of_run(command: Command) -> Command:
    """If `--load` is the folder of a run, the command with its checkpoint: the last to resume, otherwise the one that
    the run has measured, which is the best by default.
    """
    values = command.values
    folder = Path(values["load"] or "")
    is_run = (folder / CHECKPOINTS).is_dir() or (folder / RUN).is_file()
    if values["load"] is None or values["load_type"] not in (None, "pl") or not is_run:
        return command
    last = values["resume_training"] or measured_checkpoint(folder) == "last.ckpt"
    names = ("last",) if last else ("best", "last")
    found = [path for name in names if (path := folder / CHECKPOINTS / f"{name}.ckpt").is_file()]
    if not found:
        raise UserError(f"{folder} has no {CHECKPOINTS}/{names[0]}.ckpt", "give a run of train or train-dyrealloc")
    other = () if found[0].stem == names[0] else (f"{folder} has no best.ckpt yet: its last.ckpt is used",)
    return replace(command, typed={**command.typed, "load": str(found[0])}, notes=(*command.notes, *other))


def origin_of(command: Command) -> Origin:
    """Read what `--load` names. Raises UserError if it does not fit the command."""
    kind, values = command.load_type, command.values
    if values["resume_training"] and (values["load"] is None or kind != "pl"):
        raise UserError("--resume-training has no checkpoint", "give --load RUN/checkpoints/last.ckpt --load-type pl")
    return _READERS[kind](command)


def _checkpoint(command: Command) -> Origin:
    from model.checkpoint import read_checkpoint

    load, model = command.values["load"], command.given.get("model")
    if load is None:
        raise UserError("--load-type pl has no checkpoint", "give --load RUN/checkpoints/best.ckpt")
    checkpoint = read_checkpoint(Path(load))
    record, resumes = checkpoint.record, command.values["resume_training"]
    if "model" not in record.options:
        raise UserError(f"{load} does not record its model", "give a checkpoint that a run wrote")
    if families.parse_model_name(record.options["model"]) is not None and "lora" not in record.configs:
        raise UserError(f"{load} has no LoRA configuration", "give a checkpoint that is not damaged")
    if resumes and record.action != command.action:
        raise UserError(
            f"{load} is a checkpoint of {record.action}, which {command.action} can't continue",
            f"use python -m main {record.action} --resume-training --load …",
        )
    if model not in (None, record.options["model"]):
        raise UserError(
            f"{load} is a checkpoint of --model {record.options['model']}, not {model}",
            "leave --model out, or give the checkpoint's",
        )
    stated, notes = continued(command, checkpoint) if resumes else ({}, ())
    base = record.base.moved_to(command.values["backbone_model"])
    return Origin(base, record.options, checkpoint, stated=stated, notes=notes)


def _adapter(command: Command) -> Origin:
    from model.peft_format.adapter import find_adapter, read_adapter

    values, model = command.values, command.given.get("model")
    if values["load"] is None:
        raise UserError(
            "--load-type peft has no adapter", "give --load with the folder or the hub name of a PEFT LoRA adapter"
        )
    adapter = read_adapter(find_adapter(values["load"]))
    base = adapter.base(values["backbone_model"], values["seed"])
    recorded = dict(adapter.record.options) if adapter.record else {}
    if model is None and adapter.record is None:
        recorded["model"] = _model_name(adapter.folder, base.name)
    name = model or recorded.get("model", values["model"])
    adapted = families.parse_model_name(name)
    if adapted is None:
        raise UserError(
            f"{adapter.folder} is a LoRA adapter, and '{name}' is a plain model",
            "leave --model out, or use --model lora",
        )
    if model is not None and adapter.shortcut is not None and not adapted.shortcuts:
        raise UserError(
            f"{adapter.folder} has shortcuts, and '{model}' has none", f"leave --model out, or give {model}_ags"
        )
    return Origin(base, recorded | {"pretrained": base.pretrained}, adapter=adapter)


def _model_name(adapter: Path, base: str) -> str:
    """`<family>_lora`, from the configuration of the base of an adapter. `lora` if no table fits it."""
    from model.base_config import read_config

    try:
        model_type = read_config(base).model_type
    except UserError as error:
        found = f"the base of {adapter} can't be loaded: {error.found}"
        raise UserError(found, "give its hub name or folder as --backbone-model") from None
    family = families.for_model_type(model_type)
    return "lora" if family is None else f"{family.name}_lora"


def _state_dict(command: Command) -> Origin:
    from model.checkpoint import BaseSource, base_location

    load, model, moved, seed = (command.values[name] for name in ("load", "model", "backbone_model", "seed"))
    name = moved or (model if families.parse_model_name(model) is None else None)
    if name is None or load is None:
        raise UserError(
            "--load-type pt needs a state dict and its architecture",
            "give --load FILE --backbone-model with a hub name or folder that has the configuration",
        )
    return Origin(BaseSource(base_location(name), state_file=base_location(load), seed=seed))


def _base(command: Command) -> Origin:
    from model.checkpoint import BaseSource, base_location

    load, model, pretrained, seed = (command.values[name] for name in ("load", "model", "pretrained", "seed"))
    adapted = families.parse_model_name(model)
    stated: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    if adapted is not None and load is None:
        if adapted.family not in (families.OF_BASE, families.get("opt")):
            raise UserError(
                f"--load is missing: {model} needs a base model",
                f"give a hub name or folder of the {adapted.family.name} family",
            )
        load, pretrained = str(TOY_BASE), True
        stated, notes = (
            {"load": load, "pretrained": True},
            ("no --load: the base is the tiny OPT model of this program",),
        )
    name = load or model
    if not pretrained and adapted is not None:
        notes = (f"--random-init: the frozen base is '{name}' with random weights, so LoRA can do little on it",)
    return Origin(BaseSource(base_location(name), pretrained=pretrained, seed=seed), stated=stated, notes=notes)


#: What reads the files that `--load` names, for each `--load-type`.
_READERS: Mapping[str, Callable[[Command], Origin]] = {
    "pl": _checkpoint,
    "peft": _adapter,
    "pt": _state_dict,
    "hf": _base,
}
