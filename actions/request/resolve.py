"""From a parsed command to a checked request.

The value of an option is the first of: on the command line, in the options file, recorded in the checkpoint or adapter,
found in the data, by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import model.family as families
from actions.command.command import Command
from actions.command.request import Request
from actions.request.compatible import check
from actions.request.configurations import given_kinds, stated
from actions.request.data import Data, data_of
from actions.request.idle import idle_notes
from actions.request.origin import Origin, of_run, origin_of
from actions.request.resuming import is_requeued
from actions.request.values import merged
from options.every import Options, changed

DataOf = Callable[[Mapping[str, Any], Origin], Data]


def resolve(command: Command, data_of: DataOf = data_of) -> Request:
    """Decide all that depends neither on the base nor on the rows, and check it. Raises UserError for a mistake.

    `actions.request.elements` adds the family of the base and the configurations of the elements.
    """
    fingerprint, command = command.fingerprint, of_run(command)
    origin = origin_of(command)
    values = merged(command, origin.recorded)
    data, adapted = data_of(values, origin), families.parse_model_name(values["model"])
    values |= data.values
    idle = tuple(idle_notes(command, values, data.spec, adapted, origin.recorded))
    request = Request(
        action=command.action,
        options=changed(Options(), {**values, **stated(command, values, adapted, origin), **origin.stated}),
        spec=data.spec,
        adapted=adapted,
        base=origin.base,
        checkpoint=origin.checkpoint,
        adapter=origin.adapter,
        resumes=values["resume_training"],
        fingerprint=fingerprint,
        notes=(*command.notes, *idle, *origin.notes, *data.notes),
        names_run="project" in command.typed and not is_requeued(),
    )
    check(request, given_kinds(command))
    return request
