"""Where a model comes from: the checkpoint, adapter or base that `--load` names, and what it records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model.family as families
from actions.command.command import Command
from actions.command.options_file import inferred_load_type
from actions.request.resuming import check_resumable
from actions.run.run_folder import CHECKPOINTS, RUN, measured_checkpoint
from heterolora.common.errors import UserError
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Kind
from model.family import AdaptedName
from options.every import Options, changed

if TYPE_CHECKING:
    from model.checkpoint import BaseSource, Checkpoint
    from model.peft_format.adapter import Adapter

TOY_BASE = Path(__file__).resolve().parents[2] / "model" / "toy_opt"


@dataclass(frozen=True)
class Origin:
    """What `--load` names. All fields are empty if it is a base model."""

    recorded: Mapping[str, Any] = field(default_factory=dict)  # options that the checkpoint or adapter records
    base: BaseSource | None = None  # the recorded base, or `--backbone-model` if it moved
    checkpoint: Checkpoint | None = None
    adapter: Adapter | None = None
    notes: tuple[str, ...] = ()  # lines to print

    def configs(self, model: str) -> dict[Kind, ElementConfig]:
        """The configurations of the elements that the checkpoint or adapter holds."""
        if self.adapter is None:
            return {} if self.checkpoint is None else dict(self.checkpoint.record.configs)
        from model.peft_format.fit import config_of_adapter

        adapted, adapter = families.parse_model_name(model), self.adapter
        if adapted is None:
            raise UserError(
                f"{adapter.folder} is a LoRA adapter, and '{model}' is a plain model",
                "leave --model out, or use a model such as opt_lora",
            )
        shortcut: dict[Kind, ElementConfig] = {} if adapter.shortcut is None else {"shortcut": adapter.shortcut}
        return {"lora": config_of_adapter(adapter, adapted.family), **shortcut}


def load_type_of(options: Options) -> str:
    """`--load-type`, by default inferred from `--load`."""
    return options.load_type or inferred_load_type(options.load)


def of_run(command: Command) -> Command:
    """If `--load` is the folder of a run, the command with its checkpoint: the last to resume, otherwise the one that
    the run has measured, which is the best by default.
    """
    options, folder = command.options, Path(command.options.load or "")
    is_run = (folder / CHECKPOINTS).is_dir() or (folder / RUN).is_file()
    if options.load is None or options.load_type not in (None, "pl") or not is_run:
        return command
    last = options.resume_training or measured_checkpoint(folder) == "last.ckpt"
    names = ("last",) if last else ("best", "last")
    found = [path for name in names if (path := folder / CHECKPOINTS / f"{name}.ckpt").is_file()]
    if not found:
        raise UserError(f"{folder} has no {CHECKPOINTS}/{names[0]}.ckpt", "give a run of train or train-dyrealloc")
    if found[0].stem != names[0]:
        command = replace(command, notes=(*command.notes, f"{folder} has no best.ckpt yet: its last.ckpt is used"))
    return replace(command, options=changed(options, {"load": str(found[0])}))


def origin_of(command: Command) -> Origin:
    """Read the checkpoint or adapter that `--load` names. Raises UserError if it does not fit the options."""
    kind = load_type_of(command.options)
    if command.options.resume_training and (command.options.load is None or kind != "pl"):
        raise UserError("--resume-training has no checkpoint", "give --load RUN/checkpoints/last.ckpt --load-type pl")
    if kind == "pl":
        return _checkpoint(command)
    return _adapter(command) if kind == "peft" else Origin()


# ---- checkpoints


def _checkpoint(command: Command) -> Origin:
    from model.checkpoint import read_checkpoint

    options = command.options
    if options.load is None:
        raise UserError("--load-type pl has no checkpoint", "give --load RUN/checkpoints/best.ckpt")
    checkpoint = read_checkpoint(Path(options.load))
    record = checkpoint.record
    if "model" not in record.options:
        raise UserError(f"{options.load} does not record its model", "give a checkpoint that a run wrote")
    if families.parse_model_name(record.options["model"]) is not None and "lora" not in record.configs:
        raise UserError(f"{options.load} has no LoRA configuration", "give a checkpoint that is not damaged")
    if options.resume_training and record.action != command.action:
        raise UserError(
            f"{options.load} is a checkpoint of {record.action}, which {command.action} can't continue",
            f"use python -m main {record.action} --resume-training --load …",
        )
    if "model" in command.given and options.model != record.options["model"]:
        raise UserError(
            f"{options.load} is a checkpoint of --model {record.options['model']}, not {options.model}",
            "leave --model out, or give the checkpoint's",
        )
    notes = check_resumable(command, checkpoint) if options.resume_training else ()
    return Origin(record.options, record.base.moved_to(options.backbone_model), checkpoint, notes=notes)


# ---- adapters


def _adapter(command: Command) -> Origin:
    from model.peft_format.adapter import find_adapter, read_adapter

    options = command.options
    if options.load is None:
        raise UserError(
            "--load-type peft has no adapter", "give --load with the folder or the hub name of a PEFT LoRA adapter"
        )
    adapter = read_adapter(find_adapter(options.load))
    base = adapter.base(options.backbone_model, options.seed)
    recorded = dict(adapter.record.options) if adapter.record else {}
    adapted = families.parse_model_name(options.model)
    if "model" not in command.given and adapter.record is None:
        recorded["model"] = _model_name(adapter, base)
    if "model" in command.given and adapter.shortcut is not None and adapted is not None and not adapted.shortcuts:
        raise UserError(
            f"{adapter.folder} has shortcuts, and '{options.model}' has none",
            f"leave --model out, or give {options.model}_ags",
        )
    return Origin(recorded | {"pretrained": base.pretrained}, base, adapter=adapter)


def _model_name(adapter: Adapter, base: BaseSource) -> str:
    """`<family>_lora`, from the configuration of the base."""
    from model.base_config import read_config

    try:
        model_type = read_config(base.name).model_type
    except UserError as error:
        found = f"the base of {adapter.folder} can't be loaded: {error.found}"
        raise UserError(found, "give its hub name or folder as --backbone-model") from None
    family = families.for_model_type(model_type)
    if family is None:
        raise UserError(
            f"{adapter.folder} is an adapter for a model of type '{model_type}'",
            f"expected one of the families {', '.join(families.names())}",
        )
    return f"{family.name}_lora"


# ---- base models


def with_base(options: Options, adapted: AdaptedName | None) -> tuple[Options, BaseSource, tuple[str, ...]]:
    """The base model of options that name neither checkpoint nor adapter: (options, base, lines to print)."""
    from model.checkpoint import BaseSource, base_location

    if options.load_type == "pt":
        name = options.backbone_model or (options.model if adapted is None else None)
        if name is None or options.load is None:
            raise UserError(
                "--load-type pt needs a state dict and its architecture",
                "give --load FILE --backbone-model with a hub name or folder that has the configuration",
            )
        state_file = base_location(options.load)
        return options, BaseSource(base_location(name), state_file=state_file, seed=options.seed), ()
    notes: tuple[str, ...] = ()
    if adapted is not None and options.load is None:
        if adapted.family.name != "opt":
            raise UserError(
                f"--load is missing: {options.model} needs a base model",
                f"give a hub name or folder of the {adapted.family.name} family",
            )
        options = replace(options, load=str(TOY_BASE), pretrained=True)
        notes = ("no --load: the base is the tiny OPT model of this program",)
    name = options.load if adapted is not None else options.load or options.model
    if not options.pretrained and adapted is not None:
        notes = (f"--random-init: the frozen base is '{name}' with random weights, so LoRA can do little on it",)
    return options, BaseSource(base_location(name), pretrained=options.pretrained, seed=options.seed), notes
