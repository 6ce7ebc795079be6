"""What a heuristic sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from heterolora.search_space import SearchSpace

Batch = Mapping[str, Any]
Track = Callable[[Sequence[Any], str], Iterable[Any]]


@dataclass(frozen=True)
class Result:
    """What the network makes of a batch.

    Attributes:
        total: loss summed over what the task counts (rows or target tokens), a scalar.
        count: how many of them there are.
        logits: the network's output, of any shape.
    """

    total: Tensor
    count: Tensor
    logits: Tensor

    @property
    def loss(self) -> Tensor:
        """The loss of the batch: its mean over rows (or target tokens), which is also what training minimises."""
        return self.total / self.count


class RunningMetric(Protocol):
    """A metric that is updated batch by batch, such as a torchmetrics object."""

    def reset(self) -> None: ...

    def update(self, logits: Tensor, labels: Tensor) -> None: ...

    def compute(self) -> Tensor: ...


@dataclass(frozen=True)
class Metric:
    """The metric of the task.

    Attributes:
        name: `loss` (the mean over rows or target tokens), `accuracy`, or the name of `running`.
        tolerance: how much worse, relative to its own size, the metric may get and still counts as unchanged.
        running: builds any other metric on a device; it reduces over processes by itself.
        higher_is_better: the direction of `running`.
    """

    name: str = "loss"
    tolerance: float = 0.01
    running: Callable[[torch.device], RunningMetric] | None = None
    higher_is_better: bool = False


def untracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The default `Problem.track`: no progress is shown."""
    return items


@dataclass(frozen=True)
class Problem:
    """A network, its search space and scoring batches. L is the sum of the batches' losses.

    Attributes:
        network: the adapted network.
        space: its elements; while a heuristic runs all are on, dropout is off, and nothing but them asks for gradients.
        evaluate: batch → what the network makes of it; runs the forward pass.
        batches: this process's share of the scoring batches, batch i of all of them on process i mod world.
        metric: what the task is measured by.
        track: (items, what is done with them) → the same items, while progress is shown.
    """

    network: nn.Module
    space: SearchSpace
    evaluate: Callable[[Batch], Result]
    batches: Sequence[Batch]
    metric: Metric = Metric()
    track: Track = untracked

    @property
    def device(self) -> torch.device:
        """The device of the elements."""
        return self.space.elements[0].low_rank.A.device
