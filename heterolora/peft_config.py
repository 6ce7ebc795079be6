"""LoRA elements -> what PEFT's `adapter_config.json` says of them. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from heterolora.config import ElementSettings


def task_type(task: str) -> str:
    """PEFT's word for one of our tasks."""
    return "SEQ_CLS" if task == "classification" else "CAUSAL_LM"


def peft_config(
    sites: Mapping[str, ElementSettings], task: str, base: str | None, heads: Sequence[str] = ()
) -> dict[str, Any]:
    """What `peft.LoraConfig` takes, in plain values.

    PEFT finds modules by the end of their path and reads patterns as regular expressions, so that modules are named by
    their full path, escaped in patterns. It has one dropout and one way to scale for all: dropout is the largest, and
    where some elements scale by r and some by its root, the latter are written with the alpha that scales alike.

    Args:
        sites: path of the linear layer -> its element; off elements left out.
        task: what the network does.
        base: hub name or folder of the base.
        heads: names of the modules that are trained whole.
    """
    stabilised = bool(sites) and all(settings.use_rslora for settings in sites.values())
    alphas = {
        module: settings.alpha if settings.use_rslora == stabilised else settings.scaling * settings.r
        for module, settings in sites.items()
    }
    ranks = {module: settings.r for module, settings in sites.items()}
    # Tools that know no patterns read these two: a uniform adapter has no patterns, and none is narrower than it says.
    r, alpha = max(ranks.values(), default=1), max(alphas.values(), default=1)
    return {
        "peft_type": "LORA",
        "task_type": task_type(task),
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": _shortest(alpha),
        "lora_dropout": max((settings.dropout for settings in sites.values()), default=0.0),
        "use_rslora": stabilised,
        "bias": "none",
        "target_modules": list(sites),
        "rank_pattern": {re.escape(module): rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {re.escape(module): _shortest(a) for module, a in alphas.items() if a != alpha},
        "modules_to_save": list(heads) or None,
    }


def peft_notes(sites: Mapping[str, ElementSettings]) -> tuple[str, ...]:
    """What its configuration cannot say of these elements as they are, one line each."""
    notes = []
    dropouts = sorted({settings.dropout for settings in sites.values()})
    if len(dropouts) > 1:
        listed = ", ".join(f"{dropout:g}" for dropout in dropouts)
        notes.append(f"PEFT has one dropout for all elements, these have {listed}: the largest is written")
    if len({settings.use_rslora for settings in sites.values()}) > 1:
        notes.append("PEFT has one use_rslora for all elements: those that have it are written with alpha · sqrt(r)")
    return tuple(notes)


def _shortest(value: float) -> float | int:
    """16 and not 16.0: PEFT's field is a whole number, though it takes any."""
    return int(value) if float(value).is_integer() else value
