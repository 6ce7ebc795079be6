"""A base model without its weights: modules and shapes from a configuration, in no time and no memory."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from dataset.spec import Task


def skeleton(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """The network of `config` with the head of `task`, its tensors on the meta device."""
    auto = AutoModelForSequenceClassification if task == "classification" else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)
