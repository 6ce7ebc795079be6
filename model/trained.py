"""The trained parameters of a network, and loading them from a checkpoint."""

from __future__ import annotations

from torch import nn

from heterolora.common.errors import UserError
from heterolora.elements.search_space import SearchSpace
from model.checkpoint import Checkpoint, ModelRecord, check_fit
from model.sharding import put


def trained_names(network: nn.Module, space: SearchSpace | None) -> tuple[str, ...]:
    """Return the names of the parameters that require a gradient, and of those of every element, on or off."""
    of_elements = {id(p) for low_rank in space or () for p in low_rank.parameters()}
    return tuple(
        name
        for name, parameter in network.named_parameters(remove_duplicate=False)
        if parameter.requires_grad or id(parameter) in of_elements
    )


def take(network: nn.Module, space: SearchSpace | None, own: ModelRecord, checkpoint: Checkpoint) -> None:
    """Copy trained weights and on/off state into a network, whose own identity is `own`.

    Raises UserError if the base is another one, or if weights are missing, unknown or of another shape.
    """
    record, state = checkpoint.record, checkpoint.weights
    if space is not None and record.base_sha256 != own.base_sha256:
        raise UserError(
            f"the checkpoint was trained on another base model than '{own.base.name}'",
            f"give the same weights of '{own.base.name}' as --backbone-model",
        )
    parameters = network.state_dict()
    trained = {name: parameters[name] for name in trained_names(network, space)}
    advice = "give the model and configuration that it was trained with"
    check_fit(state, trained, "the checkpoint does not fit this model", advice)
    for name, tensor in state.items():
        put(trained[name], tensor)
    if space is not None:
        space.switch(set(record.on))
