"""LoRA elements -> the values of PEFT's `adapter_config.json`. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from heterolora.common.errors import UserError
from heterolora.elements.element import Element


def peft_config(
    elements: Sequence[Element],
    task_type: str | None,
    base: str | None = None,
    heads: Sequence[str] = (),
    modules: Iterable[str] | None = (),
) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig`, in plain values.

    PEFT matches the end of a module's path and reads patterns as regular expressions, so modules are named by their
    full path, which is escaped in patterns. If a path is the end of another path of the network (`modules`; None: not
    known), the modules are named by a regular expression for whole paths instead. On mixtures of experts, PEFT takes
    only the ends of the paths that it matches, and so also the same layer of other blocks.

    PEFT has one dropout and one kind of scaling for all modules: the largest dropout is written, and if only some
    elements use rsLoRA, their alpha is written so that the scaling stays the same. With LoRA on weights of experts,
    which are its `target_parameters`, it has no dropout at all. `base` is the hub name or folder of the base, and
    `heads` are the names of modules that are trained completely. Raises UserError if two elements are on one module.
    """
    settings = {element.module: element.settings for element in elements}
    linears = [element.module for element in elements if element.experts == 1]
    experts = [element.module for element in elements if element.experts > 1]
    if len(settings) < len(elements):
        raise UserError("two elements are on one module", "expected scores or a configuration with each module once")
    stabilised = bool(settings) and all(each.use_rslora for each in settings.values())
    alphas = {
        module: each.alpha if each.use_rslora == stabilised else each.scaling * each.rank
        for module, each in settings.items()
    }
    ranks = {module: each.rank for module, each in settings.items()}
    # Tools without patterns read only these two values. A uniform adapter needs no pattern, and no rank is above `r`.
    others = [module for module in modules or () if module not in settings]
    in_another = modules is None or any(end in linears for module in others for end in _ends(module))
    in_each_other = any(end in settings for module in settings for end in _ends(module))
    start = "^" if modules is None or in_each_other else ""
    r, alpha = max(ranks.values(), default=1), max(alphas.values(), default=1)
    return {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": shortest(alpha),
        "lora_dropout": 0.0 if experts else max((each.dropout for each in settings.values()), default=0.0),
        "use_rslora": stabilised,
        "bias": "none",
        "target_modules": "|".join(map(re.escape, linears)) if in_another and linears else linears,
        **({"target_parameters": experts} if experts else {}),
        "rank_pattern": {start + re.escape(module): rank for module, rank in ranks.items() if rank != r},
        "alpha_pattern": {start + re.escape(module): shortest(a) for module, a in alphas.items() if a != alpha},
        "modules_to_save": list(heads) or None,
    }


def short_names(chosen: Sequence[str], network: Iterable[str]) -> list[str]:
    """The paths of modules as PEFT's `target_modules`: `q_proj` instead of its paths if all modules of that name are
    chosen. `network`: the paths of all its modules, or nothing if they are not known.
    """
    meant: dict[str, set[str]] = {}
    for path in network:
        meant.setdefault(path.rpartition(".")[2], set()).add(path)
    every, names = {*chosen}, ((path, path.rpartition(".")[2]) for path in chosen)
    return list(dict.fromkeys(name if meant.get(name, {""}) <= every else path for path, name in names))


def peft_notes(elements: Sequence[Element]) -> tuple[str, ...]:
    """The properties of these elements that PEFT's configuration cannot express, one line each."""
    notes = []
    dropouts = sorted({element.settings.dropout for element in elements})
    if len(dropouts) > 1 and any(element.experts > 1 for element in elements):
        notes.append(f"PEFT takes no dropout beside experts: 0 is written instead of {dropouts[-1]:g}")
    elif len(dropouts) > 1:
        listed = ", ".join(f"{dropout:g}" for dropout in dropouts)
        notes.append(f"PEFT has one dropout for all elements, these have {listed}: the largest is written")
    if len({element.settings.use_rslora for element in elements}) > 1:
        notes.append("PEFT has one use_rslora for all elements: elements with rsLoRA are written with alpha · sqrt(r)")
    return tuple(notes)


def _ends(module: str) -> Iterator[str]:
    """`a.b.c` -> `b.c`, `c`."""
    while "." in module:
        module = module.partition(".")[2]
        yield module


def shortest(value: float) -> float | int:
    """16 instead of 16.0: PEFT declares the field as a whole number."""
    return int(value) if float(value).is_integer() else value
