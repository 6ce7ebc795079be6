"""A choice of elements -> the block that another trainer reads in its configuration file.

Each trainer passes these values to `peft.LoraConfig`. axolotl knows PEFT's patterns of ranks and alphas. LLaMA-Factory
and the configuration file of TRL have one rank and one alpha for all modules, so they get the highest rank that spends
no more parameters than the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from heterolora.common.errors import UserError
from heterolora.elements.element import Element
from heterolora.elements.peft_config import peft_config, peft_notes, short_names

_OF_REWARD_MODELS = "the choice is for a classifier, and {who} trains classifiers as reward models only ({how})"


@dataclass(frozen=True)
class Block:
    """Keys and values of a configuration file, and what they cannot express, one line each."""

    values: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def to_yaml(self) -> str:
        return yaml.safe_dump(dict(self.values), sort_keys=False, default_flow_style=False, width=1000)


def axolotl(
    lora: Sequence[Element], task_type: str, base: str | None, modules: Sequence[str], network: Sequence[str]
) -> Block:
    peft = peft_config(lora, task_type, base, modules=modules)
    alpha, notes = _whole("lora_alpha", peft["lora_alpha"])
    alphas = {}
    for pattern, value in peft["alpha_pattern"].items():
        alphas[pattern], more = _whole(f"the alpha of {pattern}", value)
        notes += more
    if task_type == "SEQ_CLS":
        notes += (_OF_REWARD_MODELS.format(who="axolotl", how="reward_model: true"),)
    values = {
        "base_model": base,
        "adapter": "lora",
        "lora_r": peft["r"],
        "lora_alpha": alpha,
        "lora_dropout": peft["lora_dropout"],
        "lora_target_modules": targets(peft, network),
        "lora_rank_pattern": peft["rank_pattern"],
        "lora_alpha_pattern": alphas,
        "peft_use_rslora": peft["use_rslora"],
    }
    if peft["rank_pattern"] or peft["alpha_pattern"]:
        notes += ("an axolotl without lora_rank_pattern ignores it, and gives every module lora_r: use a recent one",)
    return Block(_filled(values), (*peft_notes(lora), *notes))


def llamafactory(
    lora: Sequence[Element], task_type: str, base: str | None, modules: Sequence[str], network: Sequence[str]
) -> Block:
    if task_type != "CAUSAL_LM":
        found = f"LLaMA-Factory trains language models only, and this choice is for {task_type}"
        raise UserError(found, "use --format peft")
    even, notes = _of_one_rank(lora, "LLaMA-Factory has")
    peft = peft_config(even, task_type, base)
    alpha, more = _whole("lora_alpha", peft["lora_alpha"])
    values = {
        "model_name_or_path": base,
        "finetuning_type": "lora",
        "lora_rank": peft["r"],
        "lora_alpha": alpha,
        "lora_dropout": peft["lora_dropout"],
        "lora_target": ",".join(short_names([element.module for element in even], network)),
        "use_rslora": peft["use_rslora"],
    }
    return Block(_filled(values), (*peft_notes(lora), *notes, *more))


def trl(
    lora: Sequence[Element], task_type: str, base: str | None, modules: Sequence[str], network: Sequence[str]
) -> Block:
    even, notes = _of_one_rank(lora, "the configuration file of TRL has")
    if notes:
        notes += ("TRL's trainers take each rank as peft_config=LoraConfig(…), see --format peft",)
    if task_type == "SEQ_CLS":
        notes += (_OF_REWARD_MODELS.format(who="TRL", how="trl reward"),)
    peft = peft_config(even, task_type, base)
    alpha, more = _whole("lora_alpha", peft["lora_alpha"])
    values = {
        "model_name_or_path": base,
        "use_peft": True,
        "lora_task_type": task_type,
        "lora_r": peft["r"],
        "lora_alpha": alpha,
        "lora_dropout": peft["lora_dropout"],
        "lora_target_modules": short_names([element.module for element in even], network),
        "use_rslora": peft["use_rslora"],
    }
    return Block(_filled(values), (*peft_notes(lora), *notes, *more))


# Of elements, PEFT's name of the task, the base, the modules that can have LoRA, and all modules of the network.
BLOCKS: Mapping[str, Callable[[Sequence[Element], str, str | None, Sequence[str], Sequence[str]], Block]] = {
    "axolotl": axolotl,
    "llamafactory": llamafactory,
    "trl": trl,
}


def targets(peft: Mapping[str, Any], network: Sequence[str]) -> Any:
    """The `target_modules` of PEFT's configuration with short names. A regular expression stays as it is."""
    named = peft["target_modules"]
    return named if isinstance(named, str) else short_names(named, network)


def _of_one_rank(lora: Sequence[Element], who: str) -> tuple[list[Element], tuple[str, ...]]:
    """The elements at one rank and one scaling, and a note for each of the two that differed. With rsLoRA, alpha stays
    the same at every rank, and the scaling does not.
    """
    fixed = "alpha" if all(element.settings.use_rslora for element in lora) else "scaling"
    ranks = {element.rank for element in lora}
    values = {element.key: round(getattr(element.settings, fixed), 9) for element in lora}
    spent = sum(element.parameters for element in lora)
    rank = spent // sum(element.width for element in lora)
    rank = max(1, min(rank, *(element.highest_rank for element in lora)))
    shared = max(lora, key=lambda element: values[element.key]).settings.at(rank)
    even = [replace(element, settings=replace(shared, dropout=element.settings.dropout)) for element in lora]
    notes: tuple[str, ...] = ()
    if len(ranks) > 1:
        now = sum(element.parameters for element in even)
        notes += (
            f"{who} one rank for all modules: {rank} is written instead of {min(ranks)} to {max(ranks)} "
            f"({now:,} parameters instead of {spent:,})",
        )
    if len(set(values.values())) > 1:
        notes += (f"{who} one alpha for all modules: the largest {fixed} is written, {max(values.values()):g}",)
    return even, notes


def _whole(what: str, alpha: float) -> tuple[int, tuple[str, ...]]:
    """Alpha as a whole number, which these trainers require."""
    rounded = max(1, round(alpha))
    return rounded, () if rounded == alpha else (f"{what} must be a whole number: {alpha:g} becomes {rounded}",)


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is unknown or empty. A dropout of 0 stays, because the default of a trainer may be another."""
    return {key: value for key, value in values.items() if value is not None and value is not False and value != {}}
