"""The LoRA and shortcut configurations that a command gives: in files, in tables of its options file, or in options.

`--rank`, `--alpha` and `--target` stand for a LoRA configuration with equal settings for all chosen projections.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterolora.common.errors import UserError, nearest
from heterolora.elements.config import ElementConfig, load
from heterolora.elements.element import PROJECTIONS, Kind, Settings
from options.every import Options

if TYPE_CHECKING:
    from heterolora.elements.family import Family
    from model.family import AdaptedName

Configs = dict[Kind, ElementConfig]

UNIFORM = ("rank", "alpha", "target")
KEYS: Mapping[str, Kind] = {"lora_config": "lora", "shortcut_config": "shortcut"}  # options whose value is a file

_RANK, _TARGET = 8, "all"
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": tuple(PROJECTIONS),
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("w1", "w2", "gate"),
}
_SHORTCUTS = Path(__file__).resolve().parents[2] / "configs" / "shortcut" / "ags_networkwise.toml"


def from_files(options: Options, tables: Mapping[Kind, ElementConfig]) -> Configs:
    """The configurations of `--lora-config` and `--shortcut-config`, and `tables`, those of the options file."""
    paths = {kind: getattr(options, name) for name, kind in KEYS.items()}
    return {**tables, **{kind: load(path, kind) for kind, path in paths.items() if path is not None}}


def with_uniform(options: Options, given: Collection[str], adapted: AdaptedName | None, configs: Configs) -> Configs:
    """The given configurations, with that of `--rank`, `--alpha` and `--target` if one of them is given."""
    if adapted is None or not any(name in given and getattr(options, name) is not None for name in UNIFORM):
        return configs
    return {**configs, "lora": _uniform(options, adapted.family)}


def with_defaults(options: Options, adapted: AdaptedName, configs: Configs) -> tuple[Options, Configs]:
    """The configurations of the model's kinds of elements, with defaults for those that are missing.

    The options state all values of a configuration that stands for `--rank`, `--alpha` and `--target`.
    """
    stands_for_options = any(getattr(options, name) is not None for name in UNIFORM)
    if "lora" not in configs:
        configs, stands_for_options = {**configs, "lora": _uniform(options, adapted.family)}, True
    if stands_for_options:
        options = replace(options, rank=_rank(options), alpha=_alpha(options), target=options.target or _TARGET)
    if adapted.shortcuts and "shortcut" not in configs:
        configs = {**configs, "shortcut": load(_SHORTCUTS, "shortcut")}
        options = replace(options, shortcut_config=_SHORTCUTS)
    return options, {kind: configs[kind] for kind in (("lora", "shortcut") if adapted.shortcuts else ("lora",))}


def in_options(config: ElementConfig, adapted: AdaptedName | None) -> dict[str, Any] | None:
    """`rank`, `alpha` and `target` of a LoRA configuration that these options can express; None for any other.

    Only projections of the model count, if it is an adapted one.
    """
    names = [name for name in PROJECTIONS if adapted is None or name in adapted.family.linears]
    on = {name: settings for name in names if (settings := config.lookup(0, name)) is not None}
    settings = next(iter(on.values()), None)
    if settings is None or config.granularity != "network":
        return None
    if any(each != Settings(settings.rank, settings.alpha) for each in on.values()):
        return None
    target = _TARGET if list(on) == names else ",".join(on)
    return {"rank": settings.rank, "alpha": settings.alpha, "target": target}


def _rank(options: Options) -> int:
    return _RANK if options.rank is None else options.rank


def _alpha(options: Options) -> float:
    return 2.0 * _rank(options) if options.alpha is None else options.alpha


def _uniform(options: Options, family: Family) -> ElementConfig:
    on = Settings(_rank(options), _alpha(options))
    chosen = _projections(options.target or _TARGET, family)
    if set(chosen) == set(family.linears):
        return ElementConfig("lora", "network", on, {})
    return ElementConfig("lora", "network", replace(on, disabled=True), dict.fromkeys(chosen, on))


def _projections(target: str, family: Family) -> list[str]:
    """The canonical names of `--target`. Raises UserError for a name that the family does not have."""
    names = {group: [name for name in members if name in family.linears] for group, members in _GROUPS.items()}
    names |= {given: [name] for name in family.linears for given in (name, *PROJECTIONS[name])}
    chosen: list[str] = []
    for part in (part.strip() for part in target.split(",")):
        if part not in names:
            found = f"{family.name} has no {part}" if part in _all_names() else f"'{part}' is not known"
            raise UserError(f"--target {target}: {found}", nearest(part, (*_GROUPS, *family.linears)))
        chosen += names[part]
    return [name for name in PROJECTIONS if name in chosen]


def _all_names() -> set[str]:
    return {given for name, others in PROJECTIONS.items() for given in (name, *others)}
