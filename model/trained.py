"""What a network trains, and taking it from a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heterolora.errors import UserError
from heterolora.search_space import SearchSpace
from model.checkpoint import Record


def trained_names(module: nn.Module, space: SearchSpace | None) -> tuple[str, ...]:
    """Names of the trained parameters: those that ask for a gradient, and every element, on or off."""
    of_elements = {id(p) for low_rank in space or () for p in low_rank.parameters()}
    return tuple(
        name
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if parameter.requires_grad or id(parameter) in of_elements
    )


def take(
    module: nn.Module, space: SearchSpace | None, own: Record, record: Record, state: Mapping[str, Tensor]
) -> None:
    """Load trained weights and on/off state.

    Args:
        module: what holds the trained parameters.
        space: its search space if it is adapted.
        own: the identity of the model at hand.
        record: that of the checkpoint.
        state: the checkpoint's weights, under the names that `module` has for them.

    Raises:
        UserError: another base model, or weights missing, unknown or of another shape.
    """
    if space is not None and record.base_sha256 != own.base_sha256:
        raise UserError(
            f"the checkpoint was trained on another base model than '{own.base.name}'",
            f"give the very weights of '{own.base.name}' as --backbone-model",
        )
    trained, parameters = set(trained_names(module, space)), module.state_dict()
    missing, unknown = sorted(trained - state.keys()), sorted(state.keys() - trained)
    if missing or unknown:
        raise UserError(
            f"the checkpoint does not fit this model: {len(missing)} weights missing "
            f"({', '.join(missing[:1]) or 'none'}), {len(unknown)} unknown ({', '.join(unknown[:1]) or 'none'})",
            "give the model and configuration that it was trained with",
        )
    for name, tensor in state.items():
        if tensor.shape != parameters[name].shape:
            raise UserError(
                f"the checkpoint's {name} has shape {tuple(tensor.shape)}",
                f"this model's has {tuple(parameters[name].shape)}; give the configuration that it was trained with",
            )
    with torch.no_grad():
        for name, tensor in state.items():
            parameters[name].copy_(tensor)
    if space is not None:
        space.switch(set(record.on))
