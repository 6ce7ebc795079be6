"""From a parsed command to a checked request.

The value of an option is the first of: on the command line, in the options file, recorded in the checkpoint or adapter,
found in the data, by default.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import model.family as families
from actions.command.command import Command
from actions.command.request import Request
from actions.request.compatible import check
from actions.request.configurations import configured
from actions.request.data import Data, data_of
from actions.request.idle import idle_notes
from actions.request.origin import Origin, adapted_of, of_run, origin_of, with_configs
from actions.request.resuming import is_requeued
from actions.request.values import merged
from dataset.reading.own import check_name
from options.every import Options, changed

if TYPE_CHECKING:
    from heterolora.elements.task import Task

DataOf = Callable[[Mapping[str, Any], Origin], Data]


def resolve(command: Command, data_of: DataOf = data_of) -> Request:
    """Check everything that needs neither model nor data. Raises UserError for a mistake.

    Args:
        data_of: names the data set. By default the one that the model is trained or measured on.
    """
    families.check_name(command.values["model"], command.values["load"])
    if "dataset" in command.given:
        check_name(command.given["dataset"])
    fingerprint, command = command.fingerprint, of_run(command)
    origin = origin_of(command)
    values = merged(command, origin.recorded)
    data = data_of(values, origin)
    values |= data.values
    adapted, of_base = adapted_of(values["model"], origin.base.name, data.spec.task)
    outside = functools.cache(functools.partial(_outside, origin.base.name, data.spec.task))
    origin = with_configs(origin, adapted, outside)
    chosen = configured(command, values, adapted, origin, outside)
    idle = idle_notes(command, values, data.spec, adapted, origin.recorded)
    request = Request(
        action=command.action,
        options=changed(Options(), {**values, **chosen.values, **origin.stated}),
        spec=data.spec,
        adapted=adapted,
        configs=chosen.configs,
        must_agree=chosen.given if origin.checkpoint is not None else origin.configs,
        base=origin.base,
        checkpoint=origin.checkpoint,
        adapter=origin.adapter,
        resumes=values["resume_training"],
        fingerprint=fingerprint,
        notes=(*command.notes, *idle, *origin.notes, *of_base, *data.notes),
        names_run="project" in command.typed and not is_requeued(),
    )
    check(request, chosen.given)
    return request


def _outside(base: str, task: Task) -> Mapping[str, str]:
    from model.base_family import outside_names

    return outside_names(base, task)
