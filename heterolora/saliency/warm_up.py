"""Training before scoring: while B = 0, some heuristics score every element 0."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed

from heterolora.common.distributed import world_size
from heterolora.elements.adapt import heads
from heterolora.saliency.problem import Batch, Problem

_TRAINABLE = (torch.float32, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class WarmUp:
    """Training with AdamW before scoring: one step on each batch. The batches are the same on every process."""

    batches: Sequence[Batch] = ()
    learning_rate: float = 5e-4


def is_fresh(problem: Problem) -> bool:
    """Whether B = 0 in every element, as at the start."""
    return not any(bool(low_rank.B.detach().any()) for low_rank in problem.space)


@contextmanager
def warmed_up(problem: Problem, warm_up: WarmUp) -> Iterator[None]:
    """Train all elements and the head with AdamW inside the block; afterwards they are bit for bit as before.

    Every process takes every step on whole batches, so that all processes get the weights that one process gets. If
    the rows were split over processes, Adam's division by the gradient's size would amplify rounding differences. The
    training is shorter if the training set has fewer batches. It is skipped if any element is trained already (B ≠ 0).
    """
    if not warm_up.batches or not is_fresh(problem):
        yield
        return
    in_heads = [parameter for head in heads(problem.network) for parameter in head.parameters()]
    elements = set(problem.space.parameters)  # a head may hold some of them
    # The others are quantised, or float16, in which AdamW divides by 0: its ε is 0 there.
    of_head = [each for each in in_heads if each not in elements and each.dtype in _TRAINABLE]
    parameters = [*problem.space.parameters, *of_head]
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        _train(problem, parameters, warm_up)
        for parameter in of_head:
            parameter.requires_grad_(False)
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)


def _train(problem: Problem, parameters: Sequence[Tensor], warm_up: WarmUp) -> None:
    optimizer = torch.optim.AdamW(parameters, lr=warm_up.learning_rate)
    for parameter in parameters:
        parameter.requires_grad_(True)
    for batch in problem.track(warm_up.batches, "warm-up"):
        found = problem.gradients(problem.evaluate(batch).mean, parameters)
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
    if world_size() > 1:  # a caller of the library may have warmed up on other batches in each process
        for parameter in parameters:
            distributed.broadcast(parameter.data, src=0)
