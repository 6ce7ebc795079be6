"""LoRA layers of the library's own on the linear layers of any network, and their way into PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from heterolora.common.checks import (
    ABOVE_0,
    LIST_OF_NAMES,
    NAMES,
    PROBABILITY,
    TRUTH,
    check_known,
    instance,
    whole_number,
)
from heterolora.common.errors import UserError
from heterolora.elements.adapt import heads, train_only
from heterolora.elements.element import Settings
from heterolora.elements.inside import compact, has_elements
from heterolora.elements.own_layers import own_layers, without_elements
from heterolora.elements.peft_config import peft_config
from heterolora.elements.peft_space import has_peft_layers, peft_space
from heterolora.elements.targets import ALL_LINEAR, capped, lora_elements

if TYPE_CHECKING:
    from peft import PeftModel


def adapt(
    model: nn.Module,
    *,
    target_modules: str | Sequence[str] = ALL_LINEAR,
    target_parameters: Sequence[str] = (),
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    use_rslora: bool = False,
) -> nn.Module:
    """Add LoRA to the linear layers of any network, in place, without PEFT. It computes what it did before.

    All other parameters are frozen, except those of a classification head of Transformers, which becomes float32.
    `heterolora.lightning.Reallocate` and `heterolora.transformers.Reallocate` search among these layers during training
    as among those of PEFT, and `score` scores them as they are. Afterwards, `to_peft` makes them layers of PEFT. If the
    model has an `nn.TransformerEncoderLayer`, torch's fast path for it is turned off in this process: the fast path
    does not call the layers inside.

    Args:
        model: the network, such as a model of Transformers, or any module with linear layers, quantised or not.
        target_modules: the layers to adapt, as for `score`.
        target_parameters: the weights of experts to adapt, as for `score`.
        rank: of each layer; lower for a layer of less width.
        alpha: the scaling of a layer is alpha / rank, or alpha / √rank with `use_rslora`.
        dropout: the probability in [0, 1) of dropping an entry of a layer's input in training.

    Returns:
        `model`.

    Raises:
        UserError: an argument cannot be used, no layer matches, or the model has LoRA layers already.
    """
    instance(nn.Module, "a torch.nn.Module").check("adapt", "model", model)
    NAMES.check("adapt", "target_modules", target_modules)
    LIST_OF_NAMES.check("adapt", "target_parameters", target_parameters)
    whole_number(1).check("adapt", "rank", rank)
    ABOVE_0.check("adapt", "alpha", alpha)
    PROBABILITY.check("adapt", "dropout", dropout)
    TRUTH.check("adapt", "use_rslora", use_rslora)
    if has_elements(model):
        raise UserError("the model has LoRA layers already", "give the model without them")
    settings = Settings(int(rank), float(alpha), float(dropout), use_rslora)
    train_only(model, capped(lora_elements(model, target_modules, settings, target_parameters=target_parameters)))
    if any(isinstance(module, nn.TransformerEncoderLayer) for module in model.modules()):
        torch.backends.mha.set_fastpath_enabled(False)  # it does not call the layers inside
    return model


def to_peft(model: nn.Module, task_type: str | None = None) -> PeftModel:
    """Make the layers of `adapt` that are on layers of PEFT with the same weights, in place.

    The outputs do not change. `save_pretrained` of the result writes an adapter for the network as it was before
    `adapt`, with a trained classification head. Its configuration has the rank and the scaling of each layer.

    Args:
        model: the network that was given to `adapt`.
        task_type: PEFT's name of the task, e.g. `CAUSAL_LM`.

    Raises:
        UserError: an argument cannot be used; or the model has no layers of `adapt`, has layers of PEFT, holds the
            network as a part, or all layers are off.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    instance(nn.Module, "a torch.nn.Module").check("to_peft", "model", model)
    if task_type is not None:
        check_known("to_peft: task_type", task_type, (each.value for each in TaskType))
    if task_type in ("CAUSAL_LM", "SEQ_2_SEQ_LM") and not hasattr(model, "prepare_inputs_for_generation"):
        raise UserError(f"to_peft: task_type {task_type} is of models that generate text", "leave task_type out")
    if has_peft_layers(model):
        raise UserError("the model is a PEFT model already", "call its save_pretrained")
    if any(path != low_rank.element.host for path, low_rank in own_layers(model)):
        raise UserError("the LoRA layers are those of a part of the model", "give the network that was given to adapt")
    compact(model)
    layers = {low_rank.element.module: low_rank for _, low_rank in own_layers(model)}
    without_elements(model)
    elements = [low_rank.element for low_rank in layers.values()]
    trained = list(heads(model))
    names = [name for name, module in model.named_children() if module in trained]
    config = peft_config(elements, task_type, heads=names, modules=[path for path, _ in model.named_modules()])
    del config["peft_type"]
    made = get_peft_model(model, LoraConfig(**config), autocast_adapter_dtype=False)
    with torch.no_grad():
        for each in peft_space(made):
            own = layers[each.element.module]
            for parameter, value in zip((each.A, each.B), own.tensors, strict=True):
                parameter.data = value.detach().clone()
    return made
