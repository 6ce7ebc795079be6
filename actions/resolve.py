"""From a parsed command to a checked request, with values of a checkpoint or an adapter filled in."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import model.family as families
from actions.halving import check_optuna
from actions.idle import idle_notes
from actions.options import DYREALLOC, TRAIN, Options, changed, declared
from actions.origin import Origin, load_type_of, origin_of, with_base
from actions.parse import Command
from actions.resuming import fingerprint, options_of_run, resumed_from
from actions.run_folder import folder_of, unfinished_run
from dataset import registry
from dataset.option import flag_of
from dataset.spec import DatasetSpec
from heterolora import saliency
from heterolora.config import ElementConfig, load
from heterolora.element import Kind
from heterolora.errors import UserError, nearest
from model.family import AdaptedName
from model.reallocation.options import BUDGETS
from model.task.optimization import AUTO, RATES, RATES_OF_PLAIN

if TYPE_CHECKING:
    from model.checkpoint import BaseSource, Checkpoint, Record
    from model.peft_format.adapter import Adapter

Configs = dict[Kind, ElementConfig]

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_DEFAULT_CONFIGS: dict[Kind, Path] = {
    "lora": _CONFIGS / "lora" / "lora_networkwise.toml",
    "shortcut": _CONFIGS / "shortcut" / "ags_networkwise.toml",
}


@dataclass(frozen=True)
class Request:
    """A checked command."""

    action: str
    options: Options  # values of a checkpoint and defaults that depend on other options are filled in
    spec: DatasetSpec
    adapted: AdaptedName | None  # family and kind of an adapted model, `None` for a plain one
    configs: Configs  # its LoRA and, for an `_ags` model, shortcut configuration
    must_agree: Configs  # what `configs` must equal: configurations given beside a checkpoint, or those of an adapter
    base: BaseSource
    checkpoint: Checkpoint | None  # that `--load` names
    adapter: Adapter | None  # that `--load` names
    resumes: bool  # whether the run of the checkpoint is continued
    fingerprint: str  # of the command, see `actions.resuming`
    notes: tuple[str, ...]  # lines to print

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint whose run is continued."""
        return self.checkpoint if self.resumes else None

    @property
    def recorded(self) -> Record | None:
        """The record of the checkpoint or adapter. Adapters that were made elsewhere have none."""
        loaded = self.checkpoint or self.adapter
        return None if loaded is None else loaded.record


def resolve(command: Command) -> Request:
    """Check everything that needs neither model nor data. Raises UserError for a mistake."""
    if command.options.resume_training and command.options.optimization.learning_rate == AUTO:
        command = replace(command, given=command.given - {"learning_rate"})  # its run has chosen it
    _check_model_name(command.options.model)
    if "dataset" in command.given:
        registry.get(command.options.dataset)
    paths: dict[Kind, Path | None] = {
        "lora": command.options.lora_config,
        "shortcut": command.options.shortcut_config,
    }
    given = {kind: load(path, kind) for kind, path in paths.items() if path is not None}
    origin = origin_of(command)
    options = _with_one_budget(_filled_in(command, origin), command.given)
    adapted = families.parse_model_name(options.model)
    own = origin.configs(options.model)
    spec = registry.get(options.dataset)
    _check_options(options, spec, adapted, given)
    if options.optimization.learning_rate == AUTO:
        _check_auto(command.action, options)
    options = replace(options, task=spec.task, dataset=spec.name)
    notes = (*command.notes, *idle_notes(command, options, adapted, origin.recorded), *origin.notes)
    if origin.checkpoint is not None or adapted is None:
        configs = own
    else:
        options, configs = _with_defaults(options, adapted, {**own, **given})
    base = origin.base
    if base is None:
        options, base, more = with_base(options, adapted)
        notes = (*notes, *more)
    if options.quantize is not None:
        _check_quantizable(command.action, options, base)
    if options.devices.shards is not None:
        _check_sharding(options, adapted, base)
    resumes = options.resume_training
    if resumes:
        options, more = _of_resumed_run(options, origin.checkpoint, command.on_command_line)
        notes = (*notes, *more)
    return Request(
        action=command.action,
        options=options,
        spec=spec,
        adapted=adapted,
        configs=configs,
        must_agree=given if origin.checkpoint is not None else own,
        base=base,
        checkpoint=origin.checkpoint,
        adapter=origin.adapter,
        resumes=resumes,
        fingerprint=fingerprint(command),
        notes=notes,
    )


def continue_if_requeued(command: Command) -> Command:
    """A job that SLURM requeued resumes from its own last checkpoint, also without --resume-training."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or not int(os.environ.get("SLURM_RESTART_COUNT", "0")):
        return command
    last = unfinished_run(command.options, fingerprint(command), job)
    return command if last is None else resumed_from(command, last)


def _of_resumed_run(
    options: Options, checkpoint: Checkpoint, given: Collection[str]
) -> tuple[Options, tuple[str, ...]]:
    """The options as the run states them, and lines to print. `given` are the options on the command line."""
    own_folder = folder_of(checkpoint)
    if own_folder is None:
        notes = (f"{checkpoint.path} is not in the folder of its run: continuing in a new folder",)
    else:
        idle = [flag_of(name) for name in ("project", "project_dir") if name in given]
        notes = tuple(f"{flag} has no effect on a resumed run: it continues in {own_folder}" for flag in idle)
    return options_of_run(options, checkpoint.record, own_folder is not None), notes


def _filled_in(command: Command, origin: Origin) -> Options:
    """The options, with recorded values for those that are not given: all when resuming, else those of the model."""
    options, known = command.options, declared()
    values = {
        name: known[name].from_toml(name, value)
        for name, value in origin.recorded.items()
        if name in known
        and name not in command.given
        and known[name].resume != "start"
        and (options.resume_training or known[name].from_checkpoint)
    }
    return replace(changed(options, values), load_type=load_type_of(options))


def _with_one_budget(options: Options, given: Collection[str]) -> Options:
    """The options with one budget, by default a share of the elements. One that is given replaces a recorded one."""
    stated = [name for name in BUDGETS if getattr(options.reallocation, name) is not None]
    if not stated:
        return changed(options, {"turn_on_percentile": options.reallocation.budget.amount})
    if len(stated) == 1:
        return options
    both = [flag_of(name) for name in stated if name in given]
    if len(both) > 1:
        raise UserError(f"{both[0]} and {both[1]} are both given", "give one of them")
    return changed(options, {name: None for name in BUDGETS if name not in given})


# ---- options


def _check_model_name(name: str) -> None:
    """Raise UserError for a name that is similar to an adapted model's. Other names may exist on the hub."""
    if families.parse_model_name(name) is not None or os.path.isdir(name):
        return
    close = difflib.get_close_matches(name, families.model_names(), n=1, cutoff=0.75)
    if close or name.endswith(("_lora", "_ags")):
        raise UserError(f"--model '{name}' is not known", nearest(name, families.model_names()))


def _check_options(options: Options, spec: DatasetSpec, adapted: AdaptedName | None, given: Configs) -> None:
    if options.task is not None and options.task != spec.task:
        raise UserError(f"data set '{spec.name}' is not for --task {options.task}", f"it is for {spec.task}")
    if adapted is not None:
        adapted.family.check_task(spec.task)
    if options.loop.max_epochs == -1 and options.optimization.max_steps == -1:
        raise UserError("neither --max-epochs nor --max-steps ends the run", "give one of them")
    update = options.optimization
    lowest = update.learning_rate
    if lowest == AUTO:
        lowest = min(RATES_OF_PLAIN if adapted is None else RATES)
    if update.lr_scheduler == "cosine_annealing" and update.eta_min > lowest:
        raise UserError(
            f"--eta-min {update.eta_min:g} is above --learning-rate {lowest:g}",
            f"give at most {lowest:g}, the rate that cosine_annealing starts from",
        )
    if options.run.logger == "wandb" and importlib.util.find_spec("wandb") is None:
        raise UserError("--logger wandb needs wandb", "pip install wandb, or use tensorboard or csv")
    folder = options.cache_folder if options.cache_frozen_prefix else None
    if folder is not None and not folder.is_dir():
        raise UserError(f"--cache-folder '{folder}' is no folder", "give an existing folder, such as /tmp")
    if adapted is None:
        unusable = [f"--{kind}-config is given" for kind in given]
        if options.quantize is not None:
            unusable.append(f"--quantize {options.quantize} is given")
        if (ratio := options.optimization.loraplus_ratio) != 1:
            unusable.append(f"--loraplus-ratio is {ratio:g}")
        if options.lora_init != "kaiming":
            unusable.append(f"--lora-init is {options.lora_init}")
        if unusable:
            raise UserError(
                f"{unusable[0]}, but '{options.model}' is a plain model without LoRA",
                "leave it out, or use a model such as opt_lora",
            )
    elif "shortcut" in given and not adapted.shortcuts:
        raise UserError(
            f"--shortcut-config is given, but '{options.model}' has no shortcuts",
            f"leave it out, or use a model such as {options.model}_ags",
        )


def _check_auto(action: str, options: Options) -> None:
    """Raise UserError if trials cannot choose the learning rate."""
    if action == DYREALLOC:
        found = "--learning-rate auto cannot be used with train-dyrealloc: its trials would not reallocate"
        raise UserError(found, "give a number, such as the one that auto finds with train")
    if action == TRAIN:
        if options.optimization.optimizer == "sgd":
            raise UserError("--learning-rate auto tries rates for adam and adamw, not for sgd", "give a number")
        check_optuna("--learning-rate auto")


def _check_quantizable(action: str, options: Options, base: BaseSource) -> None:
    if not base.pretrained or base.state_file is not None:
        raise UserError(
            f"--quantize {options.quantize} needs pretrained weights in the library's own files",
            "give --load with a hub name or folder, and --pretrained",
        )
    test = options.scoring.importance_test_name
    if declared()["importance_test_name"].used_by(action) and saliency.get(test).needs_base_weights:
        raise UserError(
            f"{test} cannot be used with --quantize: it needs the weights of the base",
            "use another --importance-test-name, such as grad_norm",
        )


def _check_sharding(options: Options, adapted: AdaptedName | None, base: BaseSource) -> None:
    devices, sharded = options.devices, "--strategy fsdp"
    if devices.shards == 1:
        raise UserError(
            f"{sharded} shards within a node, and --num-devices is 1",
            f"give --shard-size {devices.world} to shard over the nodes, or more devices",
        )
    if devices.world % devices.shards:
        sizes = [str(size) for size in range(2, devices.world + 1) if devices.world % size == 0]
        raise UserError(
            f"--shard-size {devices.shards} does not divide the {devices.world} devices", f"give {' or '.join(sizes)}"
        )
    if options.quantize == "int8":
        raise UserError(
            f"{sharded} cannot be used with --quantize int8, whose scales are no parameters", "use --quantize nf4"
        )
    if options.cache_frozen_prefix:  # a row may be in the cache of one process only, and all gather the blocks together
        raise UserError(f"{sharded} cannot be used with --cache-frozen-prefix", "leave one of them out")
    if adapted is not None and (not base.pretrained or base.state_file is not None):
        raise UserError(
            f"{sharded} needs pretrained weights in the library's own files, of which each process reads its share",
            "give --load with a hub name or folder, and --pretrained",
        )


# ---- configurations


def _with_defaults(options: Options, adapted: AdaptedName, configs: Configs) -> tuple[Options, Configs]:
    """The configurations of the model's kinds of elements; the default configuration of a kind without one."""
    kinds: tuple[Kind, ...] = ("lora", "shortcut") if adapted.shortcuts else ("lora",)
    missing = {kind: _DEFAULT_CONFIGS[kind] for kind in kinds if kind not in configs}
    options = replace(options, **{f"{kind}_config": path for kind, path in missing.items()})
    return options, {kind: configs.get(kind) or load(missing[kind], kind) for kind in kinds}
