"""Evaluating a network again from one of its blocks on, if nothing before that block has changed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from heterolora.elements.blocks import blocks_of, replaced
from heterolora.saliency.problem import Loss, Problem


@dataclass(frozen=True)
class State:
    """The state from which a forward pass continues: with block `layer`, or with the embeddings if x is None."""

    layer: int = 0
    x: Tensor | None = None  # input of the block (rows, tokens, width)
    before: tuple[int, Tensor] | None = None  # (previous block, its h), if the block has a shortcut that needs it


class Restarts:
    """Evaluates batches from a block on. Blocks must be requested in ascending order.

    For each batch one state is kept, that of the last requested block. Blocks before a requested block run only once,
    from the kept state. Embeddings, masks, head and loss are computed each time, and the result is bit for bit that of
    a complete evaluation. A network without a family table is always evaluated completely, because its blocks may have
    other inputs and outputs.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, family = problem, problem.space.family
        self.blocks = None if family is None or not family.has_norms else blocks_of(problem.network, family)
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
        hook = self.blocks[layer].register_forward_pre_hook(partial(self._keep, batch, layer))
        try:
            with replaced(self.blocks, range(state.layer), state.x):
                self.problem.space.carry.held.before = state.before
                return self.problem.evaluate(self.batches[batch])
        finally:
            hook.remove()

    def _keep(self, batch: int, layer: int, _block: nn.Module, args: tuple[Any, ...]) -> None:
        self.states[batch] = State(layer, args[0], self.problem.space.carry.held.before)
