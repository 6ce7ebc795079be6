"""What a resumed run takes over from its checkpoint, and which options it refuses to change."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.run.run_folder import folder_of, unfinished_run
from dataset import registry
from heterolora.common.errors import UserError
from options.actions import DYREALLOC
from options.declare import flag_of
from options.every import declared
from options.optimization import AUTO

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint, ModelRecord

_PLACE = ("project", "project_dir")
_OF_THIS_START = ("config", "stop_after")  # options that a resumed run does not take over, nor record
_ANEW = "leave it out, or start a new run from the checkpoint without --resume-training"


def is_requeued() -> bool:
    """Whether SLURM runs this job again, from the first of its commands."""
    return "SLURM_JOB_ID" in os.environ and int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def continue_if_requeued(command: Command) -> Command:
    """A job that SLURM requeued resumes from its own last checkpoint, also without --resume-training."""
    if not is_requeued():
        return command
    job = os.environ["SLURM_JOB_ID"]
    if (last := unfinished_run(command.values, command.fingerprint, job)) is None:
        return command
    values = {**command.given, "resume_training": True, "load": str(last), "load_type": "pl"}
    notes = (*command.notes, f"requeued: continuing from {last}")
    return Command(command.action, {}, values, command.tables, notes, command.fingerprint)


def continued(command: Command, checkpoint: Checkpoint) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options that a resumed run states, whatever is given, and lines to print.

    Options that belong to one start of the program are those of the first start. A run that continues in a new folder
    has its own `project` and `project_dir`. Raises UserError unless the run can be continued exactly.
    """
    own, given, folder = _recorded(checkpoint.record), command.given, folder_of(checkpoint)
    stated = {"learning_rate": own["learning_rate"]} if given.get("learning_rate") == AUTO else {}  # it is chosen
    notes = _check_resumable(command.action, {**given, **stated}, own, checkpoint)
    if folder is None:
        notes += (f"{checkpoint.path} is not in the folder of its run: continuing in a new folder",)
    else:
        idle = [flag_of(name) for name in _PLACE if name in command.typed]
        notes += tuple(f"{flag} has no effect on a resumed run: it continues in {folder}" for flag in idle)
    if own["resume_training"]:  # an older version recorded the options of its last start
        own |= {"load": checkpoint.record.base.name, "load_type": None, "resume_training": False}
    starts = [name for name, info in declared().items() if info.resume == "start" and name not in _OF_THIS_START]
    return stated | {name: own[name] for name in starts if folder is not None or name not in _PLACE}, notes


def _recorded(record: ModelRecord) -> dict[str, Any]:
    """Name -> value of every option of the run. An option that its version did not have has its default."""
    return {
        name: info.from_toml(name, record.options[name]) if name in record.options else info.default
        for name, info in declared().items()
    }


def _check_resumable(
    action: str, given: Mapping[str, Any], own: Mapping[str, Any], checkpoint: Checkpoint
) -> tuple[str, ...]:
    """Return notes about the options that change. Raises UserError unless the run can be continued exactly with them.

    `OptionInfo.resume` declares which options may change. Options that are not given have the run's own values.
    """
    into, window = checkpoint.batches_into_epoch, own["accumulate_grad_batches"]
    if into % window:
        raise UserError(
            f"{checkpoint.path} was saved {into} batches into an epoch, inside an accumulation window of {window}",
            "resume from last.ckpt of this run",
        )
    scores_batches = action == DYREALLOC and own["imp_source"] == "dedicated"  # which have --batch-size rows
    for info in declared().values():
        name, was = info.name, own[info.name]
        now = given.get(name, was)
        same = now == was and type(now) is type(was)  # 1 is a batch, and 1.0 is an epoch
        if name == "dataset":  # own data may have moved: the loader compares the rows
            same = registry.find(now) is registry.find(was)
        if same or not info.used_by(action):
            continue
        found = f"{info.flag} is {_shown(now)}, but the run to resume has {_shown(was)}"
        if info.resume == "fixed" or (name == "batch_size" and scores_batches):
            raise UserError(found, _ANEW)
        if info.resume == "epoch_end" and into:
            raise UserError(
                f"{found}, and the checkpoint is {into} batches into an epoch",
                "leave it out, or resume from a checkpoint of the end of an epoch",
            )
    _check_global_batch(own, {**own, **given})
    _check_length(given, checkpoint)
    length = [declared()[name].flag for name in ("max_epochs", "max_steps") if given.get(name) not in (None, own[name])]
    if length and (own["lr_scheduler"] != "none" or isinstance(own["warmup_steps"], float)):
        return (f"{length[0]} changes the length of the run: the learning rate follows the longer or shorter schedule",)
    return ()


def _check_global_batch(own: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = [name for name, info in declared().items() if info.resume == "global_batch"]
    before, after = (math.prod(values[name] for name in names) for values in (own, now))
    if before != after:
        product = " × ".join(declared()[name].flag for name in names)
        raise UserError(
            f"{product} is {after}, but the run to resume has {before}",
            "keep this product, or start a new run from the checkpoint without --resume-training",
        )


def _check_length(given: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raise UserError for a run that would end before its checkpoint."""
    for name, done, unit in (("max_epochs", checkpoint.epochs, "epochs"), ("max_steps", checkpoint.step, "steps")):
        asked = given.get(name)
        if asked not in (None, -1) and asked < done:
            found = f"{declared()[name].flag} {asked} is less than the {done} {unit} of the checkpoint"
            raise UserError(found, f"give at least {done}")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
