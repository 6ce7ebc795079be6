"""Notes about options that are given and have no effect. Each option declares when it has none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from actions.command.command import Command
from dataset.spec import DatasetSpec
from model.family import AdaptedName
from options.every import Options, declared, flat


def idle_notes(
    command: Command,
    options: Options,
    spec: DatasetSpec,
    adapted: AdaptedName | None,
    recorded: Mapping[str, Any],
) -> Iterator[str]:
    """One line for each option that the user gave and that has no effect on this run.

    A `--config` file may repeat a run, or hold options of several actions. Its options are noted only if the action
    uses them and their value is neither the default nor that of the checkpoint.

    Args:
        options: the options with resolved `task` and `load_type`.
        adapted: None for a plain model.
        recorded: options that the checkpoint or adapter records.
    """
    about = {"action": command.action, "adapted": adapted is not None, "entry": None if spec.own else spec}
    run = {**flat(options), **about}
    for name, info in declared().items():
        in_file = name in command.given and str(run[name]) not in (str(info.default), str(recorded.get(name)))
        if not info.used_by(command.action):
            why = f"on {command.action}" if name in command.on_command_line else None
        elif name in command.on_command_line or in_file:
            why = info.idle(run) if info.idle is not None else None
        else:
            why = None
        if why is not None:
            yield f"{info.flag_for(run[name])} has no effect {why}"
