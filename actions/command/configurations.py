"""The LoRA and shortcut configurations that a command gives: in files, in tables of its options file, or in options.

`--rank`, `--alpha` and `--target` stand for a LoRA configuration with equal settings for all chosen projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from heterolora.elements.config import ElementConfig
from heterolora.elements.element import OUTSIDE, PROJECTIONS, Kind, Settings
from model.family import OF_BASE

if TYPE_CHECKING:
    from model.family import AdaptedName

Configs = dict[Kind, ElementConfig]

UNIFORM = ("rank", "alpha", "target")
ALL = "all"  # of `--target`: all projections of the family
KEYS: Mapping[str, Kind] = {"lora_config": "lora", "shortcut_config": "shortcut"}  # options whose value is a file


def in_options(config: ElementConfig, adapted: AdaptedName | None) -> dict[str, Any] | None:
    """`rank`, `alpha` and `target` of a LoRA configuration that these options can express; None for any other.

    Only projections of the model count, if it is an adapted one.
    """
    names = list(PROJECTIONS) if adapted is None or adapted.family is OF_BASE else list(adapted.family.linears)
    if adapted is not None and adapted.family is OF_BASE:
        if config.default.candidate and any(not each.candidate for each in config.sites.values()):
            return None  # the places that are left depend on the base
        names += [site for site in config.sites if isinstance(site, str) and site not in names]
    on = {name: settings for name in names if (settings := config.lookup(0, name)) is not None}
    outside = {name: each for name, i in OUTSIDE.items() if (each := config.lookup(i, name)) is not None}
    settings = next(iter([*on.values(), *outside.values()]), None)
    if settings is None or config.granularity != "network":
        return None
    if any(each != Settings(settings.rank, settings.alpha) for each in (*on.values(), *outside.values())):
        return None
    inside = [ALL] if list(on) == names else [*on]
    return {"rank": settings.rank, "alpha": settings.alpha, "target": ",".join([*inside, *outside])}
