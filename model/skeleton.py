"""Builds a base model without weights: the modules and shapes of a configuration, quickly and without memory."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from dataset.spec import Task
from heterolora.common.outside import reading


def auto_class(task: Task) -> type[AutoModelForCausalLM] | type[AutoModelForSequenceClassification]:
    """Returns the class of transformers that builds a network with the head of `task`."""
    return AutoModelForSequenceClassification if task == "classification" else AutoModelForCausalLM


def skeleton(config: PretrainedConfig, task: Task) -> PreTrainedModel:
    """Returns the network of `config` with the head of `task`. Its tensors are on the meta device.

    Raises UserError if the values of the configuration do not fit together.
    """
    expected = f"give a configuration that transformers can build for {task}"
    with reading("the configuration of the model", config.name_or_path, expected), torch.device("meta"):
        return auto_class(task).from_config(config, trust_remote_code=False)
