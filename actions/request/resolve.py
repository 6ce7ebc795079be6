"""From a parsed command to a checked request, with values of a checkpoint or an adapter filled in."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

import model.family as families
from actions.command.command import Command
from actions.command.configurations import from_files, with_defaults, with_uniform
from actions.command.idle import idle_notes
from actions.command.request import Request
from actions.request.compatible import check_base, check_options
from actions.request.origin import Origin, load_type_of, of_run, origin_of, with_base
from actions.request.resuming import fingerprint, options_of_run, resumed_from
from actions.request.trained_data import notes_on_classes, trained_classes
from actions.run.console import set_log_level
from actions.run.run_folder import folder_of, unfinished_run
from dataset import registry
from dataset.reading import own
from dataset.reading.own import same_data
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest
from options.actions import TEST
from options.data import OwnDataOptions
from options.declare import flag_of
from options.every import Options, changed, declared
from options.optimization import AUTO, default_rate
from options.scoring import BUDGETS, default_heuristic

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

_OF_ONE_DATA_SET = ("dataset_saved_path", "validation_share", "validation_seed")


def resolve(command: Command) -> Request:
    """Check everything that needs neither model nor data. Raises UserError for a mistake."""
    identity = fingerprint(command)
    command = of_run(command)
    if command.options.resume_training and command.options.optimization.learning_rate == AUTO:
        command = replace(command, given=command.given - {"learning_rate"})  # its run has chosen it
    _check_model_name(command.options.model)
    if "dataset" in command.given:
        own.check_name(command.options.dataset)
    given = from_files(command.options, command.tables)
    origin = origin_of(command)
    options = _with_one_budget(_filled_in(command, origin), command.given)
    if options.scoring.importance_test_name is None:
        heuristic = default_heuristic(command.action, options.scoring.imp_source)
        options = changed(options, {"importance_test_name": heuristic})
    adapted = families.parse_model_name(options.model)
    if options.optimization.learning_rate is None:
        options = changed(options, {"learning_rate": default_rate(plain=adapted is None)})
    given = with_uniform(options, command.given, adapted, given)
    configs = origin.configs(options.model)
    classes = trained_classes(origin.recorded)
    options, spec = _with_data(options, classes)
    check_options(command.action, options, spec, adapted, given)
    notes = (*command.notes, *idle_notes(command, options, spec, adapted, origin.recorded), *origin.notes)
    notes = (*notes, *notes_on_classes(classes, spec))
    must_agree = given if origin.checkpoint is not None else configs
    if origin.checkpoint is None and adapted is not None:
        options, configs = with_defaults(options, adapted, {**configs, **given})
    base = origin.base
    if base is None:
        options, base, more = with_base(options, adapted)
        notes = (*notes, *more)
    check_base(command.action, options, adapted, base)
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
        must_agree=must_agree,
        base=base,
        checkpoint=origin.checkpoint,
        adapter=origin.adapter,
        resumes=resumes,
        fingerprint=identity,
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
    if not (options.resume_training or _is_recorded(command, origin)):  # place and split are those of other data
        values = {name: value for name, value in values.items() if name not in _OF_ONE_DATA_SET}
        if (
            command.action == TEST
            and not registry.is_known(options.dataset)
            and "validation_share" not in command.given
        ):
            values["validation_share"] = 0.0  # no row was trained on
    return replace(changed(options, values), load_type=load_type_of(options))


def _is_recorded(command: Command, origin: Origin) -> bool:
    """Whether the data set is that of the checkpoint or adapter, also by another path."""
    recorded = origin.recorded.get("dataset")
    if recorded is None or "dataset" not in command.given:
        return recorded is not None
    recorded = declared()["dataset"].from_toml("dataset", recorded)  # a damaged value is an error
    return recorded is not None and same_data(recorded, command.options.dataset)


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


# ---- data


def _with_data(options: Options, classes: tuple[str, ...]) -> tuple[Options, DatasetSpec]:
    """The entry of the data set, and the options with its task and what was found out about own data.

    `classes` are those of a trained head.
    """
    if registry.is_known(options.dataset):
        spec = registry.get(options.dataset)
        if options.task not in (None, spec.task):
            raise UserError(f"data set '{spec.name}' is not for --task {options.task}", f"it is for {spec.task}")
        return replace(options, task=spec.task, dataset=spec.name, own=OwnDataOptions()), spec
    data = options.data
    set_log_level(options.run.log_level)  # `datasets` reads the data now
    cache = not data.disable_dataset_cache
    spec, described = own.describe(options.dataset, options.own, options.task, cache, classes)
    if data.validation_seed is None:
        data = replace(data, validation_seed=options.seed)
    place = own.from_anywhere(options.dataset)
    return replace(options, task=spec.task, dataset=place, own=described, data=data), spec


# ---- options


def _check_model_name(name: str) -> None:
    """Raise UserError for a name that is similar to an adapted model's. Other names may exist on the hub."""
    if families.parse_model_name(name) is not None or os.path.isdir(name):
        return
    close = difflib.get_close_matches(name, families.model_names(), n=1, cutoff=0.75)
    if close or f"_{name}".endswith(("_lora", "_ags")):
        raise UserError(f"--model '{name}' is not known", nearest(name, families.model_names()))
