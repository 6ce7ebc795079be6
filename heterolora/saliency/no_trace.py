"""A context in which a network is scored, and after which it is unchanged."""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from heterolora.elements.search_space import SearchSpace
from heterolora.elements.shortcut import Held
from heterolora.saliency.own_forward import own_forward


@contextmanager
def no_trace(network: nn.Module, space: SearchSpace) -> Iterator[None]:
    """Every element is on, dropout is off, only elements require gradients, checkpointed blocks stay checkpointed.

    Layers compute with their own forward pass, see `own_forward`. Afterwards, also if the block raises or is
    interrupted, switches, `requires_grad`, gradients, modes, buffers and the random state are as before. The values of
    parameters are not restored, because nothing here writes to them.
    """
    with ExitStack() as stack:

        def restore(owner: object, *attributes: str) -> None:
            for name in attributes:
                stack.callback(setattr, owner, name, getattr(owner, name))

        stack.enter_context(random_state(network))
        for parameter in network.parameters():
            restore(parameter, "grad", "requires_grad")
            parameter.grad = None  # not copied: an accumulation window may be open
        for low_rank in space:
            restore(low_rank, "enabled", "importance", "probe")
        restore(space.carry, "held")
        space.carry.held = Held()
        for module in network.modules():
            for name, buffer in module.named_buffers(recurse=False):
                stack.callback(_put_back, module, name, buffer, buffer.clone())
        stack.enter_context(torch.inference_mode(False))  # the caller may be inside an evaluation
        stack.enter_context(torch.enable_grad())

        stack.enter_context(own_forward(network))
        stack.enter_context(_without_dropout(network))
        if any(isinstance(module, nn.RNNBase) for module in network.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # its backward pass needs training mode
        for block in _checkpointed_blocks(network):
            stack.enter_context(_checkpointed_in_evaluation(block))
        network.requires_grad_(False)
        for low_rank in space:
            low_rank.switch(True)
            low_rank.importance = 1.0
            low_rank.probe = None
        yield


@contextmanager
def _without_dropout(network: nn.Module) -> Iterator[None]:
    """Every module has the mode of evaluation, and computes as it can in training.

    `eval()` of some networks does more than to set modes: it puts kernels without a backward pass in place of layers,
    or adds adapters to weights. So it is not called here. If such a module is in evaluation, its `train()` takes back
    what `eval()` did. At the end, its `train()` forgets what it kept in the meantime, as DoRA in PEFT keeps products of
    weights, and `eval()` follows if it was in evaluation.
    """
    modes = [(module, module.training) for module in network.modules()]
    switching = [(module, training) for module, training in modes if _does_more_than_set_modes(module)]
    try:
        for module, training in switching:
            if not training:
                module.train()
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in switching:
            module.train()
            if not training:
                module.eval()
        for module, training in modes:
            module.training = training


def _does_more_than_set_modes(module: nn.Module) -> bool:
    """Whether `train` or `eval` of the module's class is its own. That of transformers exchanges kernels only."""
    kind, library = type(module), sys.modules.get("transformers.modeling_utils")
    usual = [nn.Module] if library is None else [nn.Module, library.PreTrainedModel]
    return not any(kind.train is each.train and kind.eval is each.eval for each in usual)


@torch.no_grad()
def _put_back(module: nn.Module, name: str, buffer: Tensor, values: Tensor) -> None:
    """The forward pass of a network may change a buffer, or put another one in its place."""
    if not buffer.is_inference():
        buffer.copy_(values)
    setattr(module, name, buffer)


@contextmanager
def random_state(network: nn.Module, seed: int | None = None) -> Iterator[None]:
    """Restore the random state of Python, NumPy, and torch on the CPU and on the network's GPUs.

    Inside, torch starts from `seed` if there is one. `torch.manual_seed` would also change all other devices.
    """
    gpus = {parameter.device.index for parameter in network.parameters() if parameter.device.type == "cuda"}
    for_python, for_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(sorted(gpus)):
        try:
            if seed is not None:
                for generator in (torch.default_generator, *(torch.cuda.default_generators[gpu] for gpu in gpus)):
                    generator.manual_seed(seed)
            yield
        finally:
            random.setstate(for_python)
            np.random.set_state(for_numpy)


def _checkpointed_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of a Transformers model that recompute their activations. Networks of other libraries have none."""
    library = sys.modules.get("transformers.modeling_layers")
    if library is None:
        return []
    layers = (module for module in network.modules() if isinstance(module, library.GradientCheckpointingLayer))
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def _checkpointed_in_evaluation(block: Any) -> Iterator[None]:
    """The block recomputes its activations although all modules inside it are in evaluation mode.

    transformers checkpoints a block only if its `training` is true when it is called. Some blocks (OPT's) also use
    `training` for dropout. So `training` is set to true for the call, and set back to false inside the function that
    the library calls for checkpointing. The library does not call that function if no gradient is required. The
    reentrant kind cannot be used with `torch.autograd.grad`, so the other kind replaces it.
    """
    kept = block._gradient_checkpointing_func
    reentrant = isinstance(kept, functools.partial) and kept.keywords.get("use_reentrant")
    checkpoint = functools.partial(kept, use_reentrant=False) if reentrant else kept
    block._gradient_checkpointing_func = functools.partial(_checkpoint_in_evaluation, block, checkpoint)
    hook = block.register_forward_pre_hook(_train_if_gradients_are_enabled)
    try:
        yield
    finally:
        hook.remove()
        block._gradient_checkpointing_func = kept


def _train_if_gradients_are_enabled(block: nn.Module, _args: tuple[Any, ...]) -> None:
    block.training = torch.is_grad_enabled()


def _checkpoint_in_evaluation(
    block: nn.Module, checkpoint: Callable[..., Any], run: Callable[..., Any], *args: Any
) -> Any:
    def run_in_evaluation(*args: Any) -> Any:
        block.training = False
        return run(*args)

    return checkpoint(run_in_evaluation, *args)
