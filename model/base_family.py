"""The family of a base model: the table that fits it, or the places for LoRA that are found in the network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

import model.family as families
from heterolora.elements import found
from heterolora.elements import task as task_names
from heterolora.elements.blocks import blocks_of, names_outside
from heterolora.elements.family import Family
from heterolora.elements.task import CLASSIFYING, GENERATING, TASKS, Task
from model.base_config import read_config
from model.skeleton import skeleton


@dataclass(frozen=True)
class BaseFamily:
    """The family of a base, and lines to print about it."""

    family: Family
    notes: tuple[str, ...] = ()


def family_of_base(source: str, task: Task) -> BaseFamily:
    """The family of the base model `source`, a hub name or folder.

    Raises UserError if models of this type cannot do the task, or have no blocks that are found.
    """
    config = read_config(source)
    table = families.for_model_type(config.model_type)
    if table is not None:
        return BaseFamily(table, tuple(_on_experts(table)))
    tasks = tasks_of(config)
    task_names.check_task(task, config.model_type, tasks)
    network = skeleton(config, task)
    family = found.family_of(network, config.model_type, tasks)
    return BaseFamily(family, tuple(_notes(network, family)))


def outside_names(source: str, task: Task) -> dict[str, str]:
    """Name that a user may give -> name of a place outside of the blocks of the base model `source`."""
    return names_outside(skeleton(read_config(source), task))


def tasks_of(config: PretrainedConfig) -> tuple[Task, ...]:
    """The tasks of models of this type. An encoder cannot predict tokens: it would see them. An encoder-decoder writes
    a response to a prompt.
    """
    if config.is_encoder_decoder:
        return (*CLASSIFYING, *GENERATING)
    family, decodes = families.for_model_type(config.model_type), getattr(config, "is_decoder", False)
    if decodes:
        return tuple(TASKS)
    if family is not None:
        return family.tasks
    return CLASSIFYING if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES else tuple(TASKS)


def check_task(config: PretrainedConfig, task: Task) -> None:
    """Raise UserError if models of this type cannot do the task."""
    family = families.for_model_type(config.model_type)
    task_names.check_task(task, config.model_type if family is None else family.name, tasks_of(config))


def _on_experts(family: Family) -> Iterator[str]:
    if family.experts:
        named = ", ".join(family.experts)
        yield f"the experts ({named}) get LoRA only where --target or the LoRA configuration names them"


def _notes(network: nn.Module, family: Family) -> Iterator[str]:
    blocks = blocks_of(network, family)
    yield from _on_experts(family)
    layers = getattr(network.config, "num_hidden_layers", len(blocks))
    if layers != len(blocks) and len(blocks) == 1:
        yield f"the {layers} layers of this model share one block, and so do their elements"
