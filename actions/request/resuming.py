"""What a resumed run takes over from its checkpoint, and which options it refuses to change."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.command.configurations import KEYS
from dataset import registry
from heterolora.common.errors import UserError
from options.actions import DYREALLOC
from options.every import Options, as_plain, changed, declared, flat

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint, Record

_OF_THIS_START = ("config", "stop_after")  # options that a resumed run does not take over, nor record
_ANEW = "leave it out, or start a new run from the checkpoint without --resume-training"


def check_resumable(command: Command, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Returns notes about the options that change. Raises UserError unless the run can be continued exactly with them.

    `OptionInfo.resume` declares which options may change. Options that are not given have the run's own values.
    """
    own, given = _recorded(checkpoint.record), _given(command)
    into, window = checkpoint.batches_into_epoch, own["accumulate_grad_batches"]
    if into % window:
        raise UserError(
            f"{checkpoint.path} was saved {into} batches into an epoch, inside an accumulation window of {window}",
            "resume from last.ckpt of this run",
        )
    for name, now in given.items():
        info, was = declared()[name], own[name]
        same = now == was and type(now) is type(was)  # 1 is a batch, and 1.0 is an epoch
        if name == "dataset" and not (registry.is_known(now) or registry.is_known(was)):
            continue  # own data that moved: the loader compares the rows
        if same or not info.used_by(command.action):
            continue
        found = f"{info.flag} is {_shown(now)}, but the run to resume has {_shown(was)}"
        if info.resume == "fixed" or (name == "batch_size" and _scores_batches(command.action, own)):
            raise UserError(found, _ANEW)
        if info.resume == "epoch_end" and into:
            raise UserError(
                f"{found}, and the checkpoint is {into} batches into an epoch",
                "leave it out, or resume from a checkpoint of the end of an epoch",
            )
    _check_global_batch(own, {**own, **given})
    _check_length(given, checkpoint)
    length = [declared()[name].flag for name in ("max_epochs", "max_steps") if given.get(name, own[name]) != own[name]]
    if length and (own["lr_scheduler"] != "none" or isinstance(own["warmup_steps"], float)):
        return (f"{length[0]} changes the length of the run: the learning rate follows the longer or shorter schedule",)
    return ()


def options_of_run(options: Options, record: Record, same_folder: bool) -> Options:
    """The options of a resumed run, as an uninterrupted run states them.

    Options that belong to one start of the program are those of the first start. A run that continues in a new folder
    has its own `project` and `project_dir`.
    """
    own, known = _recorded(record), declared()
    if own["resume_training"]:  # an older version recorded the options of its last start
        own |= {"load": record.base.name, "load_type": None, "resume_training": False}
    names = [name for name, info in known.items() if info.resume == "start" and name not in _OF_THIS_START]
    kept = [name for name in names if same_folder or name not in ("project", "project_dir")]
    return changed(options, {name: own[name] for name in kept})


def fingerprint(command: Command) -> str:
    """A hash of the action, of all options that a resumed run may not change, and of the configurations.

    A requeued job has the same one.
    """
    if command.identity is not None:
        return command.identity
    plain = as_plain(command.options)
    values = {name: value for name, value in plain.items() if name in KEYS or declared()[name].resume != "free"}
    values |= {kind: config.to_document() for kind, config in command.tables.items()}
    return hashlib.sha256(json.dumps([command.action, values], sort_keys=True).encode()).hexdigest()[:16]


def resumed_from(command: Command, last: Path) -> Command:
    """The command that continues the run of the checkpoint `last`."""
    options = replace(command.options, resume_training=True, load=str(last), load_type="pl")
    notes = (*command.notes, f"requeued: continuing from {last}")
    return replace(command, options=options, notes=notes, on_command_line=frozenset(), identity=fingerprint(command))


def _recorded(record: Record) -> dict[str, Any]:
    """Name -> value of every option of the run. An option that its version did not have has its default."""
    return {
        name: info.from_toml(name, record.options[name]) if name in record.options else info.default
        for name, info in declared().items()
    }


def _given(command: Command) -> dict[str, Any]:
    values = {name: value for name, value in flat(command.options).items() if name in command.given}
    if "dataset" in values and registry.is_known(values["dataset"]):
        values["dataset"] = registry.get(values["dataset"]).name
    return values


def _scores_batches(action: str, own: dict[str, Any]) -> bool:
    """Whether the run scores elements on separate batches, which have `--batch-size` rows."""
    return action == DYREALLOC and own["imp_source"] == "dedicated"


def _check_global_batch(own: dict[str, Any], now: dict[str, Any]) -> None:
    names = [name for name, info in declared().items() if info.resume == "global_batch"]
    before, after = (math.prod(values[name] for name in names) for values in (own, now))
    if before != after:
        product = " × ".join(declared()[name].flag for name in names)
        raise UserError(
            f"{product} is {after}, but the run to resume has {before}",
            "keep this product, or start a new run from the checkpoint without --resume-training",
        )


def _check_length(given: dict[str, Any], checkpoint: Checkpoint) -> None:
    """Raise UserError for a run that would end before its checkpoint."""
    for name, done, unit in (("max_epochs", checkpoint.epochs, "epochs"), ("max_steps", checkpoint.step, "steps")):
        asked = given.get(name, -1)
        if asked != -1 and asked < done:
            found = f"{declared()[name].flag} {asked} is less than the {done} {unit} of the checkpoint"
            raise UserError(found, f"give at least {done}")


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
