"""The input of a heuristic: a network, its search space, and scoring batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from heterolora.common.errors import UserError, nearest, shown
from heterolora.elements.search_space import SearchSpace

Batch = Mapping[str, Any]
Track = Callable[[Sequence[Any], str], Iterable[Any]]
Around = Callable[[int, Sequence[Tensor]], AbstractContextManager[None]]

#: In float16, gradients below 6e-8 are 0, and those below 6e-5 inexact. So the backward pass has larger ones, as in
#: mixed-precision training (Micikevicius et al. 2018, arXiv:1710.03740). A power of two changes no digit elsewhere.
_LOSS_SCALE = 2.0**12


@dataclass(frozen=True)
class Loss:
    """The loss of one process's share of a batch: the sum over what the task counts (rows or target tokens), a scalar,
    and their number. `logits` is the output of the network, if the metric needs it. `each` (rows,) is the sum of each
    row, without a gradient.
    """

    total: Tensor
    count: Tensor
    logits: Tensor | None = None
    each: Tensor | None = None

    @property
    def mean(self) -> Tensor:
        """The loss of the batch as training minimises it; 0 for a batch without any target."""
        return self.total / self.count.clamp(min=1)


def rows_in(batch: Any) -> int | None:
    """The rows of a batch: the length of its first tensor that has any. None if there is none."""
    if isinstance(batch, torch.Tensor):
        return len(batch) or None if batch.ndim else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((rows for part in parts if (rows := rows_in(part)) is not None), None)


@dataclass(frozen=True)
class Metric:
    """The metric of the task.

    Attributes:
        name: `loss` (the mean over rows or target tokens), `accuracy`, or the name of `running`.
        tolerance: how much worse, relative to its own size, the metric may get and still counts as unchanged.
        running: builds any other metric on a device: a torchmetrics object, or another one with `reset()`,
            `update(logits, labels)` and `compute()` that reduces over processes by itself.
        higher_is_better: the direction of `running`.
        nonnegative: whether losses are never negative, so that a verdict can be certain before the last batch.
    """

    name: str = "loss"
    tolerance: float = 0.01
    running: Callable[[torch.device], Any] | None = None
    higher_is_better: bool = False
    nonnegative: bool = True


@dataclass(frozen=True)
class Movement:
    """How far the optimizer will move the elements that are chosen, until the next choice.

    Attributes:
        length: the sum of the learning rates of its steps.
        adaptive: whether it divides the gradient of an entry by the root of its mean square, as Adam does.
    """

    length: float = 0.01
    adaptive: bool = True


def untracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The default `Problem.track`: it shows no progress."""
    return items


def unfollowed(batch: int, sums: Sequence[Tensor]) -> AbstractContextManager[None]:
    """The default `Problem.around`: nothing follows the sums."""
    return nullcontext()


class NoAttributeError(UserError, AttributeError):
    """A heuristic reads an attribute that a `Problem` does not have."""


@dataclass(frozen=True)
class Problem:
    """A network, its search space and scoring batches. L is the sum of the batches' losses.

    Attributes:
        space: its elements; while a heuristic runs, all are on, dropout is off, and only elements require gradients.
        batches: this process's share of the scoring batches: batch i belongs to process i mod world.
        track: (items, description) -> the same items, while progress is shown.
        movement: what the optimizer will do with the elements that are chosen.
        fillers: batches without effect on the scores, of a process that has fewer batches than another. A sharded base
            needs as many passes on every process, because each pass gathers weights.
        loss_scale: of the gradients inside a backward pass.
        around: (number of a batch, sums over batches) -> a context in which the batch is added to the sums.
    """

    network: nn.Module
    space: SearchSpace
    evaluate: Callable[[Batch], Loss]
    batches: Sequence[Batch]
    metric: Metric = field(default_factory=Metric)
    track: Track = untracked
    movement: Movement = Movement()
    fillers: Sequence[Batch] = ()
    loss_scale: float = _LOSS_SCALE
    around: Around = unfollowed

    def __getattr__(self, name: str) -> Any:
        """Of an attribute that is not there: raises an error that names the nearest one."""
        if name.startswith("__"):  # Python looks for its own
            raise AttributeError(name)
        valid = [found for found in (*self.__dataclass_fields__, *vars(Problem)) if not found.startswith("_")]
        raise NoAttributeError(f"a Problem has no attribute '{name}'", nearest(name, valid))

    def passes(self, what: str, sums: Sequence[Tensor] = ()) -> Iterator[tuple[Batch, bool]]:
        """The batches and the fillers, each with whether it counts; `what` describes the progress.

        `sums` are tensors to which the caller adds each batch in place.
        """
        tracked = self.track(self.batches, what)
        if not isinstance(tracked, Iterable):
            raise UserError(f"track returned {shown(tracked)}", "return the batches that it gets, one after the other")
        for number, batch in enumerate(tracked):
            with self.around(number, sums):
                yield batch, True
        yield from ((batch, False) for batch in self.fillers)

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
        """∂loss/∂input of each input, zeros where the loss does not depend on it."""
        found = torch.autograd.grad(self.scaled(loss), inputs, materialize_grads=True)
        return [gradient / self.loss_scale for gradient in found]

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss for a backward pass, whose gradients are `loss_scale` times as large as those of the loss."""
        return loss.float() * self.loss_scale

    def unscaled(self) -> Problem:
        """The same problem for gradients so large that their scaled values are infinite in float16."""
        return replace(self, loss_scale=1.0)
