"""Builds a base model without weights: the modules and shapes of a configuration, quickly and without memory."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from dataset.spec import Task


def skeleton(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """Returns the network of `config` with the head of `task`. Its tensors are on the meta device."""
    auto = AutoModelForSequenceClassification if task == "classification" else AutoModelForCausalLM
    with torch.device("meta"):
        return auto.from_config(config)
