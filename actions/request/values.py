"""The values of all options: default < recorded in the checkpoint or adapter < given, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import model.family as families
from actions.command.command import Command
from dataset import registry
from dataset.reading.own import same_data
from heterolora.common.errors import UserError
from options.actions import TEST
from options.declare import flag_of
from options.every import declared
from options.optimization import default_rate
from options.scoring import BUDGETS, DEFAULT_SHARE, default_heuristic

_OF_ONE_DATA_SET = ("dataset_saved_path", "validation_share", "validation_seed")


def merged(command: Command, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Option -> value. `recorded`: options that the checkpoint or adapter records, as plain values."""
    values = command.values | _taken_over(command, recorded)
    values |= {"load_type": command.load_type, **_one_budget(values, command.given)}
    if values["importance_test_name"] is None:
        values["importance_test_name"] = default_heuristic({**values, "action": command.action})
    if values["learning_rate"] is None:
        values["learning_rate"] = default_rate(plain=families.parse_model_name(values["model"]) is None)
    return values


def _taken_over(command: Command, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """The recorded values of options that are not given: of all when resuming, else of those of model and data."""
    known, given, resumes = declared(), command.given, command.values["resume_training"]
    values = {
        name: known[name].from_toml(name, value)
        for name, value in recorded.items()
        if name in known
        and name not in given
        and known[name].resume != "start"
        and (resumes or known[name].from_checkpoint)
    }
    if resumes or _is_trained_on(command, recorded.get("dataset")):
        return values
    values = {name: value for name, value in values.items() if name not in _OF_ONE_DATA_SET}
    if command.action == TEST and registry.find(command.values["dataset"]) is None and "validation_share" not in given:
        values["validation_share"] = 0.0  # no row was trained on
    return values


def _is_trained_on(command: Command, recorded: Any) -> bool:
    """Whether the data set is the recorded one, also by another path."""
    if recorded is None or "dataset" not in command.given:
        return recorded is not None
    recorded = declared()["dataset"].from_toml("dataset", recorded)  # a damaged value is an error
    return recorded is not None and same_data(recorded, command.given["dataset"])


def _one_budget(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """One budget, by default a share of the elements. One that is given replaces a recorded one."""
    stated = [name for name in BUDGETS if values[name] is not None]
    if not stated:
        return {"turn_on_percentile": DEFAULT_SHARE}
    if len(stated) == 1:
        return {}
    both = [flag_of(name) for name in stated if name in given]
    if len(both) > 1:
        raise UserError(f"{both[0]} and {both[1]} are both given", "give one of them")
    return {name: None for name in BUDGETS if name not in given}
