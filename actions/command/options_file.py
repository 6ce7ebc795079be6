"""An options file: its values, the configurations that it holds, and what the command line replaces in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import model.family as families
from actions.command.command import inferred_load_type
from actions.command.configurations import KEYS, UNIFORM, in_options
from actions.command.other_names import key_meant_by
from dataset import registry
from dataset.reading.own import same_data
from dataset.reading.roles import joined_names
from heterolora.common.errors import UserError, nearest
from heterolora.common.outside import read_toml
from heterolora.elements.config import ElementConfig, parse_config
from heterolora.elements.element import Kind
from options.data import OwnDataOptions
from options.declare import flag_of
from options.every import declared, defaults
from options.scoring import BUDGETS


def read_options(path: Path) -> tuple[dict[str, Any], dict[Kind, ElementConfig]]:
    """The values of an options file, and the configurations in it. Raises UserError for a mistake."""
    known = declared()
    old = {old_key: name for name, info in known.items() for old_key in info.old_keys}
    opposites = {info.opposite: name for name, info in known.items() if info.opposite}
    values: dict[str, Any] = {}
    tables: dict[Kind, ElementConfig] = {}
    document = read_toml(path, "the options file", "give --config a TOML file of lines such as learning_rate = 1e-4")
    document.pop("action", None)  # written for the reader: another action may run with the same options
    for key, value in _with_flat_data_set(document, path).items():
        name = old.get(key, key.replace("-", "_"))
        if name in opposites:
            key, value = opposites[name], not known[opposites[name]].from_toml(key, value)
            name = key
        if name not in known or name == "config":
            raise UserError(f"key '{key}' in {path} is not an option", key_meant_by(key))
        if name in values:
            raise UserError(f"key '{key}' in {path} sets {name} a second time", "give it once")
        if name in KEYS and isinstance(value, Mapping):
            tables[KEYS[name]] = parse_config(value, KEYS[name], f"{path}: {key}", any_name=True)
        else:
            values[name] = known[name].from_toml(key, value)
    return values, tables


def _with_flat_data_set(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document with the keys of a table `[dataset]` at its top. Its `path` is `--dataset`. Lists are allowed."""
    table = document.get("dataset")
    if not isinstance(table, dict):
        return document
    keys = ("path", *(found.name for found in fields(OwnDataOptions)), "validation_share", "validation_seed")
    flat = {key: value for key, value in document.items() if key != "dataset"}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in keys:
            raise UserError(f"key '{key}' in [dataset] of {path} is not known", nearest(key, keys))
        if name in flat:
            raise UserError(f"key '{key}' in [dataset] of {path} sets {name} a second time", "give it once")
        is_list = isinstance(value, list) and all(isinstance(each, str | int) for each in value)
        names = tuple(str(each).lower() if isinstance(each, bool) else str(each) for each in value) if is_list else ()
        flat["dataset" if name == "path" else name] = joined_names(names) if is_list else value
    if "dataset" not in flat:
        raise UserError(f"[dataset] of {path} has no key 'path'", "give the file, folder or name of the data set")
    return flat


def overridden(
    in_file: Mapping[str, Any], tables: Mapping[Kind, ElementConfig], typed: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[Kind, ElementConfig]]:
    """The values and configurations of a file without those that the command line replaces."""
    _check_one_lora(typed, {})
    _check_one_lora(in_file, tables)
    model = typed.get("model")
    adapted = None if model is None else families.parse_model_name(model)
    kinds = KEYS.values() if model is None else adapted.kinds if adapted is not None else ()
    kept = {
        kind: config
        for kind, config in tables.items()
        if kind in kinds and f"{kind}_config" not in typed  # NA leaves it out
    }
    values = _without_details(in_file, typed)
    uniform = [name for name in UNIFORM if typed.get(name) is not None]
    if typed.get("lora_config") is not None:
        values = {name: value for name, value in values.items() if name not in UNIFORM}
    elif uniform and "lora" in kept:
        model = model or in_file.get("model") or defaults()["model"]
        expressed = in_options(kept.pop("lora"), families.parse_model_name(model))
        if expressed is None:
            raise UserError(
                f"{flag_of(uniform[0])} is given, but the LoRA configuration in the --config file differs by place",
                f"give --lora-config instead of {flag_of(uniform[0])}, or change the file",
            )
        values = {**expressed, **values}
    elif uniform:
        values.pop("lora_config", None)
    return values, kept


def _without_details(in_file: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file without those that belong to a value that the command line replaces.

    The file of a run states all values, also those that followed from others.
    """
    values = dict(in_file)
    if any(name in typed for name in BUDGETS):
        values = {name: value for name, value in values.items() if name not in BUDGETS}
    if "load" in typed and values.get("load_type") == inferred_load_type(values.get("load")):
        values.pop("load_type", None)
    stated, other = values.get("dataset"), typed.get("dataset")
    if stated is not None and other is not None and not same_data(stated, other):
        values.pop("dataset_saved_path", None)
        if registry.is_known(other):
            values.pop("task", None)
    return values


def _check_one_lora(values: Mapping[str, Any], tables: Mapping[Kind, ElementConfig]) -> None:
    """Raise UserError if a configuration and options that stand for one are given in the same place."""
    uniform = [name for name in UNIFORM if values.get(name) is not None]
    if uniform and ("lora" in tables or values.get("lora_config") is not None):
        raise UserError(
            f"{flag_of(uniform[0])} and --lora-config are both given", "give one of them: a configuration has all three"
        )
