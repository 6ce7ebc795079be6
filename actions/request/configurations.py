"""The LoRA and shortcut configurations of a model: recorded, given, or by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.command.configurations import ALL, KEYS, UNIFORM, Configs, kinds_of
from actions.request.origin import Origin
from heterolora.common.errors import UserError, nearest
from heterolora.elements.config import ElementConfig, Site, load
from heterolora.elements.element import OUTSIDE, PROJECTIONS, Settings

if TYPE_CHECKING:
    from heterolora.elements.family import Family
    from model.family import AdaptedName

_RANK = 8
_GROUPS = (ALL, "attention", "mlp", "experts")
_SHORTCUTS = Path(__file__).resolve().parents[2] / "configs" / "shortcut" / "ags_networkwise.toml"


@dataclass(frozen=True)
class Configured:
    """The configurations of one model."""

    configs: Configs  # those of its kinds of elements
    given: Configs  # those that the command gives
    values: Mapping[str, Any]  # options that state a configuration which is not given as one


Outside = Callable[[], Mapping[str, str]]  # name that a user may give -> name of a place outside of the blocks


def configured(
    command: Command, values: Mapping[str, Any], adapted: AdaptedName | None, origin: Origin, outside: Outside
) -> Configured:
    """The configurations that are recorded, those that the command gives, and defaults for those that are missing."""
    recorded = origin.configs
    paths = {kind: command.values[name] for name, kind in KEYS.items()}
    given = {**command.tables, **{kind: load(path, kind, True) for kind, path in paths.items() if path is not None}}
    if adapted is not None and "lora" in given:
        source = paths["lora"] or f"{command.values['config']}: lora_config"
        given["lora"] = given["lora"].named(adapted.family.accepted, str(source), outside)
    if adapted is None:
        return Configured(recorded, given, {})
    uniform = _uniform_values(values)
    default: Configs = {"lora": _uniform(uniform, adapted.family, outside), "shortcut": load(_SHORTCUTS, "shortcut")}
    if any(command.given.get(name) is not None for name in UNIFORM):
        given["lora"] = default["lora"]
    if origin.checkpoint is not None:
        return Configured(recorded, given, {})
    configs = {kind: {**default, **recorded, **given}[kind] for kind in kinds_of(adapted)}
    stated = uniform if configs["lora"] is default["lora"] else {}
    if configs.get("shortcut") is default["shortcut"]:
        stated = {**stated, "shortcut_config": _SHORTCUTS}
    return Configured(configs, given, stated)


def _uniform_values(values: Mapping[str, Any]) -> dict[str, Any]:
    rank = _RANK if values["rank"] is None else values["rank"]
    alpha = 2.0 * rank if values["alpha"] is None else values["alpha"]
    return {"rank": rank, "alpha": alpha, "target": values["target"] or ALL}


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
            raise UserError(f"--target {target}: {found}", nearest(part, known))
        chosen += names[part]
    return [name for name in (*family.places, *OUTSIDE) if name in chosen]


def _all_names() -> set[str]:
    projections = {given for name, others in PROJECTIONS.items() for given in (name, *others)}
    return {*projections, *_GROUPS, *OUTSIDE}
