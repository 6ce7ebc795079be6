"""Evaluating a network again from one of its blocks on, if nothing before that block has changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from heterolora.common.checks import present
from heterolora.elements.blocks import blocks_of, replaced
from heterolora.saliency.problem import Loss, Problem


@dataclass(frozen=True)
class State:
    """The state from which a forward pass continues: with block `layer`, or with the embeddings if x is None."""

    layer: int = 0
    x: Tensor | None = None  # output of the block before (rows, tokens, width)
    before: tuple[int, Tensor] | None = None  # (previous block, its h), if the block has a shortcut that needs it


class Restarts:
    """Evaluates batches from a block on. Blocks must be requested in ascending order.

    For each batch one state is kept, that of the last requested block. Blocks before a requested block run only once,
    from the kept state. Embeddings, masks, head and loss are computed each time, and the result is bit for bit that of
    a complete evaluation. A network without a family table is always evaluated completely, because its blocks may have
    other inputs and outputs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.family = problem, problem.space.family
        known = self.family is not None and not self.family.found
        self.blocks = blocks_of(problem.network, present(self.family)) if known else None
        self.batches = (*problem.batches, *problem.fillers)
        self.states = [State() for _ in self.batches]

    def evaluate(self, batch: int, layer: int) -> Loss:
        """The loss of batch number `batch`, where `layer` is the first block that differs from its first evaluation.

        The fillers of the problem have the numbers after its batches.

        Raises ValueError if the batch already has the state of a later block.
        """
        if self.blocks is None:
            return self.problem.evaluate(self.batches[batch])
        state = self.states[batch]
        if layer < state.layer:
            raise ValueError(f"batch {batch} can't go back from block {state.layer} to block {layer}")
        keep = partial(self._keep, batch, layer)
        hooks = [self.blocks[layer - 1].register_forward_hook(keep)] if layer > state.layer else []
        try:
            with replaced(self.blocks, range(state.layer), present(self.family), state.x):
                self.problem.space.carry.held.before = state.before
                return self.problem.evaluate(self.batches[batch])
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, batch: int, layer: int, _block: nn.Module, _args: Any, output: Any) -> None:
        y = output[0] if isinstance(output, tuple) else output
        self.states[batch] = State(layer, y, self.problem.space.carry.held.before)
