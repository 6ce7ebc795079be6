"""The LoRA and shortcut configurations of a model: recorded, given, or by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.command.configurations import ALL, KEYS, UNIFORM, Configs, kinds_of
from actions.request.origin import Origin
from heterolora.common.errors import UserError, nearest
from heterolora.elements.config import ElementConfig, load
from heterolora.elements.element import PROJECTIONS, Settings
from options.actions import ALL_PLACES

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


def configured(command: Command, values: Mapping[str, Any], adapted: AdaptedName | None, origin: Origin) -> Configured:
    """The configurations that are recorded, those that the command gives, and defaults for those that are missing."""
    recorded = origin.configs
    paths = {kind: command.values[name] for name, kind in KEYS.items()}
    given = {**command.tables, **{kind: load(path, kind, True) for kind, path in paths.items() if path is not None}}
    if adapted is not None and "lora" in given:
        source = paths["lora"] or f"{command.values['config']}: lora_config"
        given["lora"] = given["lora"].named(adapted.family.accepted, str(source))
    if adapted is None:
        return Configured(recorded, given, {})
    uniform = _uniform_values(values)
    default: Configs = {"lora": _uniform(uniform, adapted.family), "shortcut": load(_SHORTCUTS, "shortcut")}
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


def _uniform(values: Mapping[str, Any], family: Family) -> ElementConfig:
    on = Settings(values["rank"], values["alpha"])
    chosen = _projections(values["target"], family)
    if set(chosen) == set(family.linears):
        return ElementConfig("lora", "network", on, {})
    return ElementConfig("lora", "network", replace(on, disabled=True), dict.fromkeys(chosen, on))


def _projections(target: str, family: Family) -> list[str]:
    """The names of the places of `--target`. Raises UserError for a name that the family does not have."""
    attention = [name for name, path in family.linears.items() if "att" in path.lower()]
    rest = [name for name in family.linears if name not in attention]
    names = dict(zip(_GROUPS, ([*family.linears], attention, rest, [*family.experts]), strict=True))
    names |= {given: [name] for given, name in family.accepted.items()}
    chosen: list[str] = []
    for part in (part.strip() for part in target.split(",")):
        if part in _OUTSIDE:
            found = f"--target {target}: {part} is outside of the blocks, and stays frozen"
            raise UserError(found, f"name layers of the blocks: {', '.join(family.linears)}")
        if not names.get(part):
            found = f"{family.name} has no {part}" if part in _all_names() else f"'{part}' is not known"
            raise UserError(f"--target {target}: {found}", nearest(part, (*_GROUPS, *family.places), ALL_PLACES))
        chosen += names[part]
    return [name for name in family.places if name in chosen]


#: Usual names of embeddings and output layers.
_OUTSIDE = ("lm_head", "embed_out", "embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "classifier", "score")


def _all_names() -> set[str]:
    return {given for name, others in PROJECTIONS.items() for given in (name, *others)} | set(_GROUPS)
