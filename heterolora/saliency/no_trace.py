"""Looking at a network without leaving a trace: what scoring needs, and all of it as it was afterwards."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from heterolora.search_space import SearchSpace
from heterolora.shortcut import Held


@contextmanager
def no_trace(network: nn.Module, space: SearchSpace) -> Iterator[None]:
    """Every element on, dropout off, gradients on for elements only, blocks checkpointed if they were set up so.

    Afterwards, and when the block inside raises or is interrupted, switches, `requires_grad`, gradients, modes and the
    random state are what they were. Values of parameters are not looked after: nothing here writes to them.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_state(network))
        stack.enter_context(_gradients(network))
        stack.enter_context(_switches(space))
        stack.enter_context(_modes(network))
        stack.enter_context(torch.inference_mode(False))  # an evaluation may be under way around us
        stack.enter_context(torch.enable_grad())

        network.eval()
        for block in _checkpointed_blocks(network):
            stack.enter_context(_checkpointed_in_evaluation(block))
        network.requires_grad_(False)
        for element in space:
            element.low_rank.switch(True)
            element.low_rank.importance = 1.0
        yield


@contextmanager
def _random_state(network: nn.Module) -> Iterator[None]:
    gpus = {parameter.device.index for parameter in network.parameters() if parameter.device.type == "cuda"}
    for_python, for_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(sorted(gpus)):
        try:
            yield
        finally:
            random.setstate(for_python)
            np.random.set_state(for_numpy)


@contextmanager
def _gradients(network: nn.Module) -> Iterator[None]:
    """Gradients are set aside, not copied: an accumulation window may be open."""
    kept = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    for parameter, _, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, requires_grad, gradient in kept:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def _switches(space: SearchSpace) -> Iterator[None]:
    """Which elements are on, how much each counts, and nothing left on its way from block to block."""
    kept = [(element.low_rank, element.low_rank.enabled, element.low_rank.importance) for element in space]
    held, space.carry.held = space.carry.held, Held()
    try:
        yield
    finally:
        space.carry.held = held
        for low_rank, enabled, importance in kept:
            low_rank.enabled, low_rank.importance = enabled, importance


@contextmanager
def _modes(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _checkpointed_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a Transformers model that recompute their activations. Only a network of that library has any."""
    library = sys.modules.get("transformers.modeling_layers")
    if library is None:
        return []
    layers = (module for module in network.modules() if isinstance(module, library.GradientCheckpointingLayer))
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def _checkpointed_in_evaluation(block: nn.Module) -> Iterator[None]:
    """The block recomputes its activations though all inside it is in evaluation mode.

    transformers checkpoints a block only if `training` is true of it when it is called, by which some blocks (OPT's)
    drop out too. So it is true then, and false again inside the function that the library lets one assign for
    checkpointing, which is not called where no gradient is asked for.
    """
    checkpoint = block._gradient_checkpointing_func
    block._gradient_checkpointing_func = functools.partial(_checkpoint_in_evaluation, block, checkpoint)
    hook = block.register_forward_pre_hook(_train_if_gradients_are_asked_for)
    try:
        yield
    finally:
        hook.remove()
        block._gradient_checkpointing_func = checkpoint


def _train_if_gradients_are_asked_for(block: nn.Module, _args: tuple[Any, ...]) -> None:
    block.training = torch.is_grad_enabled()


def _checkpoint_in_evaluation(
    block: nn.Module, checkpoint: Callable[..., Any], run: Callable[..., Any], *args: Any
) -> Any:
    def run_in_evaluation(*args: Any) -> Any:
        block.training = False
        return run(*args)

    return checkpoint(run_in_evaluation, *args)
