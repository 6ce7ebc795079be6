"""The LoRA and shortcut configurations of a model: recorded, given, or by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.command.configurations import ALL, KEYS, UNIFORM, Configs
from actions.request.origin import Origin
from heterolora.common.errors import UserError, nearest
from heterolora.elements.config import ElementConfig, Site, load
from heterolora.elements.element import OUTSIDE, PROJECTIONS, Kind, Settings
from options.actions import ALL_PLACES
from options.every import Options

if TYPE_CHECKING:
    from heterolora.elements.family import Family
    from model.family import AdaptedName

_RANK = 8
_GROUPS = (ALL, "attention", "mlp", "experts")
_SHORTCUTS = Path(__file__).resolve().parents[2] / "configs" / "shortcut" / "ags_networkwise.toml"


Outside = Callable[[], Mapping[str, str]]  # name that a user may give -> name of a place outside of the blocks


def stated(command: Command, values: Mapping[str, Any], adapted: AdaptedName | None, origin: Origin) -> dict[str, Any]:
    """Options that state a configuration which is neither given as one nor recorded."""
    if adapted is None or origin.checkpoint is not None:
        return {}
    adapter, given = origin.adapter, given_kinds(command)
    lora = _is_uniform(command) or (adapter is None and "lora" not in given)
    shortcut = "shortcut" in adapted.kinds and "shortcut" not in given and (adapter is None or adapter.shortcut is None)
    own = _uniform_values(values["rank"], values["alpha"], values["target"])
    return (own if lora else {}) | ({"shortcut_config": _SHORTCUTS} if shortcut else {})


def given_kinds(command: Command) -> set[Kind]:
    """The kinds of elements of which the command gives a configuration, in a file or a table."""
    return {*command.tables} | {kind for name, kind in KEYS.items() if command.values[name] is not None}


def configured(
    command: Command, options: Options, adapted: AdaptedName, recorded: Configs, complete: bool, outside: Outside
) -> tuple[Configs, Configs]:
    """The configurations of the elements, and those that the command gives.

    `complete`: they are `recorded`, and a command may only repeat them. Otherwise what it gives replaces them.
    """
    paths = {kind: command.values[name] for name, kind in KEYS.items()}
    given = {**command.tables, **{kind: load(path, kind, True) for kind, path in paths.items() if path is not None}}
    if "lora" in given:
        source = paths["lora"] or f"{command.values['config']}: lora_config"
        given["lora"] = given["lora"].named(adapted.family.accepted, str(source), outside)
    uniform = _uniform(_uniform_values(options.rank, options.alpha, options.target), adapted.family, outside)
    if _is_uniform(command):
        given["lora"] = uniform
    if complete:
        return recorded, given
    found: Configs = {"lora": uniform, "shortcut": load(_SHORTCUTS, "shortcut"), **recorded, **given}
    return {kind: found[kind] for kind in adapted.kinds}, given


def _is_uniform(command: Command) -> bool:
    return any(command.given.get(name) is not None for name in UNIFORM)


def _uniform_values(rank: int | None, alpha: float | None, target: str | None) -> dict[str, Any]:
    rank = _RANK if rank is None else rank
    return {"rank": rank, "alpha": 2.0 * rank if alpha is None else alpha, "target": target or ALL}


def _uniform(values: Mapping[str, Any], family: Family, outside: Outside) -> ElementConfig:
    on = Settings(values["rank"], values["alpha"])
    chosen = _chosen(values["target"], family, outside)
    sites: dict[Site, Settings] = {(OUTSIDE[name], name) if name in OUTSIDE else name: on for name in chosen}
    inside = {name for name in chosen if name not in OUTSIDE}
    if inside == set(family.linears):
        return ElementConfig("lora", "network", on, {site: on for site in sites if not isinstance(site, str)})
    return ElementConfig("lora", "network", replace(on, disabled=True), sites)


def _chosen(target: str, family: Family, outside: Outside) -> list[str]:
    """The names of the places of `--target`. Raises UserError for a name that the model does not have."""
    attention = [name for name, path in family.linears.items() if "att" in path.lower()]
    rest = [name for name in family.linears if name not in attention]
    names = dict(zip(_GROUPS, ([*family.linears], attention, rest, [*family.experts]), strict=True))
    names |= {given: [name] for given, name in family.accepted.items()}
    chosen: list[str] = []
    for part in (part.strip() for part in target.split(",")):
        if not names.get(part):
            names |= {given: [name] for given, name in outside().items()}  # which builds the network
        if not names.get(part):
            found = f"{family.name} has no {part}" if part in _all_names() else f"'{part}' is not known"
            known = (*_GROUPS, *family.places, *dict.fromkeys(outside().values()))
            raise UserError(f"--target {target}: {found}", nearest(part, known, ALL_PLACES))
        chosen += names[part]
    return [name for name in (*family.places, *OUTSIDE) if name in chosen]


def _all_names() -> set[str]:
    projections = {given for name, others in PROJECTIONS.items() for given in (name, *others)}
    return {*projections, *_GROUPS, *OUTSIDE}
