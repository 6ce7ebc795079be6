"""The elements of the model that a request asks for. They depend on the base, whose configuration is read here.

`request_of` makes the whole request. It is the only caller of `resolve`, which decides the rest without the base.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import model.family as families
from actions.command.command import Command
from actions.command.configurations import Configs
from actions.command.request import Request
from actions.request.compatible import check_family
from actions.request.configurations import Outside, configured
from actions.request.data import data_of
from actions.request.resolve import DataOf, resolve
from dataset.reading.own import check_name
from heterolora.common.checks import present

if TYPE_CHECKING:
    from heterolora.elements.task import Task
    from model.family import AdaptedName
    from model.peft_format.adapter import Adapter


def request_of(command: Command, data_of: DataOf = data_of) -> Request:
    """Everything that a command asks for, checked before the model is loaded. Raises UserError for a mistake.

    Args:
        data_of: names the data set. By default the one that the model is trained or measured on.
    """
    families.check_name(command.values["model"], command.values["load"])
    if "dataset" in command.given:
        check_name(command.given["dataset"])
    return with_elements(resolve(command, data_of), command)


def with_elements(request: Request, command: Command) -> Request:
    """Return the request with the family of its base and the configurations of its elements, if the model has any."""
    if request.adapted is None:
        return request
    adapted, notes = _with_family(request.adapted, request.base.name, request.spec.task)
    adapter, recorded = request.adapter, dict(request.checkpoint.record.configs) if request.checkpoint else {}
    outside = functools.cache(functools.partial(_outside, request.base.name, request.spec.task))
    if adapter is not None:
        adapter, recorded = _with_places(adapter, adapted, outside)
    complete = request.checkpoint is not None
    configs, given = configured(command, request.options, adapted, recorded, complete, outside)
    request = replace(
        request,
        adapted=adapted,
        adapter=adapter,
        configs=configs,
        must_agree=given if complete else recorded,
        notes=(*request.notes, *notes),
    )
    check_family(request)
    return _with_form_of_blocks(request)


def _with_family(adapted: AdaptedName, base: str, task: Task) -> tuple[AdaptedName, tuple[str, ...]]:
    """`--model` with the family of the base, if it does not name one, and lines to print."""
    if adapted.family is not families.OF_BASE:
        return adapted, ()
    from model.base_family import family_of_base

    of_base = family_of_base(base, task)
    return replace(adapted, family=of_base.family), of_base.notes


def _outside(base: str, task: Task) -> Mapping[str, str]:
    """Name that a user may give → name of a place outside of the blocks. Builds the network of the base."""
    from model.base_family import outside_names

    return outside_names(base, task)


def _with_places(adapter: Adapter, adapted: AdaptedName, outside: Outside) -> tuple[Adapter, Configs]:
    """An adapter whose places the family and `outside` name, and its configurations."""
    from model.peft_format.fit import config_of_adapter, named

    adapter = named(adapter, adapted.family)
    configs: Configs = {"lora": config_of_adapter(adapter, adapted.family, outside)}
    return adapter, configs if adapter.shortcut is None else {**configs, "shortcut": adapter.shortcut}


def _with_form_of_blocks(request: Request) -> Request:
    """Return the request with the form of the blocks, which shortcuts need, if no table of the architecture tells it.

    Raises UserError if shortcuts do not know the form.
    """
    adapted, task = present(request.adapted), request.spec.task
    if not (adapted.shortcuts and adapted.family.found):
        return request
    from model.base_config import read_config
    from model.block_form import with_norms
    from model.skeleton import skeleton

    network = skeleton(read_config(request.base.name), task)
    return replace(request, adapted=replace(adapted, family=with_norms(network, adapted.family, task)))
