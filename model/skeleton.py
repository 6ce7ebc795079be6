"""Builds a base model without weights: the modules and shapes of a configuration, quickly and without memory."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from heterolora.common.outside import reading
from heterolora.elements.task import TASKS, Task


def auto_class(task: Task, config: PretrainedConfig) -> Any:
    """Return the class of transformers that builds a network of `config` with the head of `task`."""
    if config.is_encoder_decoder and not TASKS[task].classifies:
        return transformers.AutoModelForSeq2SeqLM
    return getattr(transformers, TASKS[task].network)


def skeleton_of_base(config: PretrainedConfig) -> PreTrainedModel:
    """Return the network of `config` without a head, as `skeleton` does."""
    expected = "give a configuration that transformers can build"
    with reading("the configuration of the model", str(config.name_or_path), expected), torch.device("meta"):
        return transformers.AutoModel.from_config(config, trust_remote_code=False)


def skeleton(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """Return the network of `config` with the head of `task`. Its tensors are on the meta device.

    Raises UserError if the values of the configuration do not fit together.
    """
    network, expected = auto_class(task, config), f"give a configuration that transformers can build for {task}"
    with reading("the configuration of the model", str(config.name_or_path), expected), torch.device("meta"):
        return network.from_config(config, trust_remote_code=False)
