"""What was asked for → what will be done: every check that needs no model, and a checkpoint's own values filled in."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model.family as families
from actions import from_peft
from actions.fields import from_toml
from actions.options import Options, declared, flag_of
from actions.parse import Command
from actions.run_folder import CHECKPOINTS, named_folder
from dataset import registry
from dataset.spec import DatasetSpec
from heterolora import saliency
from heterolora.config import ElementConfig, load, parse
from heterolora.element import Kind
from heterolora.errors import UserError, nearest
from model.family import AdaptedName
from model.peft_format import is_adapter

if TYPE_CHECKING:
    from model.checkpoint import BaseSource, Record
    from model.peft_format.adapter import Adapter

_ROOT = Path(__file__).resolve().parents[1]
_DEFAULT_CONFIGS: dict[Kind, Path] = {
    "lora": _ROOT / "configs" / "lora" / "lora_networkwise.toml",
    "shortcut": _ROOT / "configs" / "shortcut" / "ags_networkwise.toml",
}
_TOY_BASE = _ROOT / "model" / "toy_opt"

# What belongs to one run and not to the run that continues it.
_OF_ONE_RUN = ("load", "load_type", "resume_training", "backbone_model", "project_dir", "project", "config")

_OF_THE_OPTIMIZER = ("optimizer", "learning_rate", "loraplus_ratio", "weight_decay")


@dataclass(frozen=True)
class Request:
    """A checked command.

    Attributes:
        action: what to do.
        options: complete: defaults that depend on others, and a checkpoint's values, are filled in.
        spec: the data set.
        adapted: family and kind of an adapted model, `None` for a plain one.
        configs: its LoRA and, for an `_ags` model, shortcut configuration.
        must_agree: what `configs` must agree with: configurations that the user gave beside a checkpoint, which holds
            its own, or an adapter's own.
        base: where the base model comes from.
        checkpoint: the contents of our checkpoint that `--load` names.
        adapter: the PEFT adapter that it names.
        notes: lines worth telling the user.
    """

    action: str
    options: Options
    spec: DatasetSpec
    adapted: AdaptedName | None
    configs: dict[Kind, ElementConfig]
    must_agree: dict[Kind, ElementConfig]
    base: BaseSource
    checkpoint: dict[str, Any] | None
    adapter: Adapter | None
    notes: tuple[str, ...]


def resolve(command: Command) -> Request:
    """Raises UserError for all that can be known to be wrong before any model or data set is read."""
    options, notes = command.options, list(command.notes)
    _check_model_name(options.model)
    if "dataset" in command.given:
        registry.get(options.dataset)
    given = _given_configs(options)
    load_type = options.load_type or _told_by_name(options.load)
    if options.resume_training and (options.load is None or load_type != "pl"):
        raise UserError("--resume-training has no checkpoint", "give --load RUN/checkpoints/last.ckpt --load-type pl")
    checkpoint = record = start = None
    if load_type == "pl":
        checkpoint, record = _read_checkpoint(options)
        _check_resumes(command, record)
        options = _with_record(command, record)
    elif load_type == "peft":
        start = from_peft.start_from(options)
        options = _filled_in(command, start.recorded_options(command))
    options = replace(options, load_type=load_type)

    adapted = families.parse_model_name(options.model)
    of_adapter = {} if start is None else start.configs(adapted, options)
    spec = registry.get(options.dataset)
    _check_task(options, spec, adapted)
    _check_lengths(options)
    _check_logger(options)
    if adapted is None:
        _refuse_what_needs_lora(options)
        configs: dict[Kind, ElementConfig] = {}
        _refuse_configs(given, ("lora", "shortcut"), f"'{options.model}' is a plain model", "opt_lora")
    elif record is not None:
        configs = {"lora": parse(record.lora, "lora")} | (
            {"shortcut": parse(record.shortcut, "shortcut")} if record.shortcut is not None else {}
        )
    else:
        kinds: tuple[Kind, ...] = ("lora", "shortcut") if adapted.shortcuts else ("lora",)
        options, configs = _own_configs(options, kinds, {**of_adapter, **given})
    if adapted is not None and not adapted.shortcuts:
        _refuse_configs(given, ("shortcut",), f"'{options.model}' has no shortcuts", f"{options.model}_ags")
    options, base, said = _base(options, adapted, record) if start is None else (options, start.base, ())
    if options.quantize is not None:
        _check_quantizable(command.action, options, base)
    return Request(
        action=command.action,
        options=replace(options, task=spec.task, dataset=spec.name),
        spec=spec,
        adapted=adapted,
        configs=configs,
        must_agree=of_adapter if record is None else given,
        base=base,
        checkpoint=checkpoint,
        adapter=None if start is None else start.adapter,
        notes=(*notes, *said),
    )


def continue_if_requeued(command: Command) -> Command:
    """A job that SLURM requeued goes on from its own last checkpoint, whatever its command line says."""
    if not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return command
    last = named_folder(command.options) / CHECKPOINTS / "last.ckpt"
    if not last.is_file():
        return command
    options = replace(command.options, resume_training=True, load=str(last), load_type="pl")
    return replace(command, options=options, notes=(*command.notes, f"requeued: continuing from {last}"))


# ---- names


def _check_model_name(name: str) -> None:
    """A plain name can be anything that the hub has, but one that is nearly ours is a slip."""
    if families.parse_model_name(name) is not None or Path(name).is_dir():
        return
    slip = difflib.get_close_matches(name, families.model_names(), n=1, cutoff=0.75)
    if slip or name.endswith(("_lora", "_ags")):
        raise UserError(f"--model '{name}' is not known", nearest(name, families.model_names()))


def _check_task(options: Options, spec: DatasetSpec, adapted: AdaptedName | None) -> None:
    if options.task is not None and options.task != spec.task:
        raise UserError(f"data set '{spec.name}' is not for --task {options.task}", f"it is for {spec.task}")
    if adapted is not None:
        adapted.family.check_task(spec.task)


def _check_lengths(options: Options) -> None:
    if options.max_epochs == -1 and options.max_steps == -1:
        raise UserError("neither --max-epochs nor --max-steps ends the run", "give one of them")


def _check_logger(options: Options) -> None:
    if options.logger == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError("--logger wandb needs wandb", "pip install wandb, or use tensorboard or csv")


def _refuse_what_needs_lora(options: Options) -> None:
    plain = f"'{options.model}' is a plain model, trained whole"
    instead = "leave it out, or use a model such as opt_lora"
    if options.quantize is not None:
        raise UserError(f"--quantize {options.quantize} is given, but {plain}", instead)
    if options.loraplus_ratio != 1:
        raise UserError(f"--loraplus-ratio is {options.loraplus_ratio:g}, but {plain}", instead)


# ---- configurations


def _given_configs(options: Options) -> dict[Kind, ElementConfig]:
    paths: dict[Kind, Path | None] = {"lora": options.lora_config, "shortcut": options.shortcut_config}
    return {kind: load(path, kind) for kind, path in paths.items() if path is not None}


def _refuse_configs(given: dict[Kind, ElementConfig], kinds: tuple[Kind, ...], found: str, instead: str) -> None:
    for kind in kinds:
        if kind in given:
            raise UserError(f"--{kind}-config is given, but {found}", f"leave it out, or use a model such as {instead}")


def _own_configs(
    options: Options, kinds: tuple[Kind, ...], given: dict[Kind, ElementConfig]
) -> tuple[Options, dict[Kind, ElementConfig]]:
    """The given configurations, or the project's network-wise ones."""
    for kind in kinds:
        if kind not in given:
            options = replace(options, **{f"{kind}_config": _DEFAULT_CONFIGS[kind]})
    return options, {kind: given.get(kind) or load(_DEFAULT_CONFIGS[kind], kind) for kind in kinds}


# ---- weights


def _told_by_name(load_name: str | None) -> str:
    suffix = Path(load_name or "").suffix
    if suffix == ".ckpt":
        return "pl"
    if load_name and is_adapter(load_name):
        return "peft"
    return "pt" if suffix in (".safetensors", ".pt", ".pth", ".bin") else "hf"


def _read_checkpoint(options: Options) -> tuple[dict[str, Any], Record]:
    from model.checkpoint import read_checkpoint, record_of

    if options.load is None:
        raise UserError("--load-type pl has no checkpoint", "give --load RUN/checkpoints/best.ckpt")
    checkpoint = read_checkpoint(Path(options.load))
    return checkpoint, record_of(checkpoint)


def _check_resumes(command: Command, record: Record) -> None:
    if command.options.resume_training and record.action != command.action:
        raise UserError(
            f"{command.options.load} is a checkpoint of {record.action}, which {command.action} can't continue",
            f"use python -m main {record.action} --resume-training --load …",
        )


def _with_record(command: Command, record: Record) -> Options:
    """Options that the user did not give, from the checkpoint."""
    options = command.options
    if "model" in command.given and options.model != record.options["model"]:
        raise UserError(
            f"{options.load} is a checkpoint of --model {record.options['model']}, not {options.model}",
            "leave --model out, or give the checkpoint's",
        )
    if options.resume_training:
        _check_optimizer_goes_on(command, record)
    return _filled_in(command, record.options)


def _filled_in(command: Command, recorded: Mapping[str, Any]) -> Options:
    """Options that the user did not give, from recorded ones: all of them to resume, the model's own otherwise."""
    options, known = command.options, declared()
    values = {
        name: from_toml(name, known[name], value)
        for name, value in recorded.items()
        if name in known
        and name not in command.given
        and name not in _OF_ONE_RUN
        and (options.resume_training or known[name].from_checkpoint)
    }
    return replace(options, **values)


def _check_optimizer_goes_on(command: Command, record: Record) -> None:
    """A resumed run takes its optimizer's state, learning rates included, from the checkpoint."""
    for name in _OF_THE_OPTIMIZER:
        now = getattr(command.options, name)
        was = record.options.get(name, now)
        if name in command.given and now != was:
            raise UserError(
                f"{flag_of(name)} is {now}, but the run to resume has {was}",
                "leave it out, or start a new run from the checkpoint without --resume-training",
            )


def _check_quantizable(action: str, options: Options, base: BaseSource) -> None:
    if not base.pretrained or base.state_file is not None:
        raise UserError(
            f"--quantize {options.quantize} needs pretrained weights in the library's own files",
            "give --load with a hub name or folder, and --pretrained",
        )
    test = options.importance_test_name
    if declared()["importance_test_name"].used_by(action) and saliency.get(test).needs_base_weights:
        raise UserError(
            f"{test} does not go with --quantize: it needs the base's weights as numbers",
            "use another --importance-test-name, such as grad_norm",
        )


def _base(
    options: Options, adapted: AdaptedName | None, record: Record | None
) -> tuple[Options, BaseSource, tuple[str, ...]]:
    from model.checkpoint import BaseSource

    if record is not None:
        moved = options.backbone_model
        return options, BaseSource(moved, seed=record.base.seed) if moved else record.base, ()
    if options.load_type == "pt":
        name = options.backbone_model or (options.model if adapted is None else None)
        if name is None or options.load is None:
            raise UserError(
                "--load-type pt needs a state dict and its architecture",
                "give --load FILE --backbone-model with a hub name or folder that has the configuration",
            )
        return options, BaseSource(name, state_file=options.load, seed=options.seed), ()
    notes: tuple[str, ...] = ()
    if adapted is not None and options.load is None:
        if adapted.family.name != "opt":
            raise UserError(
                f"--load is missing: {options.model} needs a base model",
                f"give a hub name or folder of the {adapted.family.name} family, and --pretrained",
            )
        options = replace(options, load=str(_TOY_BASE), pretrained=True)
        notes = ("no --load: the base is the tiny OPT that comes with the program",)
    name = options.load if adapted is not None else options.load or options.model
    if not options.pretrained and adapted is not None:
        notes = (f"without --pretrained the frozen base is '{name}' with random weights: LoRA can do little on it",)
    return options, BaseSource(name, pretrained=options.pretrained, seed=options.seed), notes
