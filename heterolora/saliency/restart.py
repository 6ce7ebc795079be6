"""Evaluating a network again from one of its blocks on, where nothing before that block has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from heterolora.saliency.problem import Problem, Result
from heterolora.shortcut import Carry


@dataclass(frozen=True)
class State:
    """What a forward pass goes on from.

    Attributes:
        layer: the block that comes next.
        x: its input (rows, tokens, width); None: start from the embeddings.
        before: (block, its h) of the block before, where block `layer` has a shortcut that asks for it.
    """

    layer: int = 0
    x: Tensor | None = None
    before: tuple[int, Tensor] | None = None


class Restarts:
    """Evaluates batches from a block on; the blocks are asked for in ascending order.

    For each batch one state is kept, the furthest that was passed on the way. What is before the block runs only to
    get there from the state of an earlier one. Embeddings, masks, head and loss are the network's own each time, and
    the result is bit for bit that of a whole evaluation.

    Args:
        problem: what is evaluated.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.blocks: nn.ModuleList = problem.network.base_model.get_submodule(problem.space.family.blocks)
        self.states = [State() for _ in problem.batches]

    def evaluate(self, batch: int, layer: int) -> Result:
        """What the network makes of batch number `batch`.

        Args:
            batch: index into the problem's batches.
            layer: the first block in which anything differs from the batch's first evaluation.

        Raises:
            ValueError: the batch has a state of a later block already.
        """
        state = self.states[batch]
        if layer < state.layer:
            raise ValueError(f"batch {batch} can't go back from block {state.layer} to block {layer}")
        watched = _Watch(layer, self.problem.space.carry)
        hook = self.blocks[layer].register_forward_pre_hook(watched.see)
        try:
            with self._from(state):
                return self.problem.evaluate(self.problem.batches[batch])
        finally:
            hook.remove()
            self.states[batch] = watched.state or state

    @contextmanager
    def _from(self, state: State) -> Iterator[None]:
        """The blocks before the state's are not run; one module stands for all of them."""
        skipped = list(self.blocks[: state.layer])
        stand_in = _StandIn(state, self.problem.space.carry)
        try:
            for layer in range(state.layer):
                self.blocks[layer] = stand_in
            yield
        finally:
            for layer, block in enumerate(skipped):
                self.blocks[layer] = block


class _StandIn(nn.Module):
    """Hands on what came out of the blocks that it stands for."""

    def __init__(self, state: State, carry: Carry) -> None:
        super().__init__()
        self.state, self.carry = state, carry

    def forward(self, *_: Any, **__: Any) -> Tensor:
        if self.state.before is not None:
            self.carry.put(*self.state.before)
        return self.state.x


class _Watch:
    """Keeps the state in which a block is entered."""

    def __init__(self, layer: int, carry: Carry) -> None:
        self.layer, self.carry = layer, carry
        self.state: State | None = None

    def see(self, _block: nn.Module, args: tuple[Any, ...]) -> None:
        self.state = State(self.layer, args[0], self.carry.held.before)
