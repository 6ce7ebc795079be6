"""Measures the constants of `heterolora.choosing.step_time.StepTime` on the user's model, in a few steps."""

from __future__ import annotations

import time

import torch

from heterolora.choosing.step_time import StepTime
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.problem import Batch, Problem

_ROUNDS = 3  # after one that is not counted


def measured(problem: Problem, batch: Batch) -> StepTime:
    """The constants on this device. The network is unchanged afterwards.

    Steps without elements, with the lowest element, and with all elements are timed in turn. The fastest of each
    counts, because other programs only make a step slower.
    """
    space = problem.space
    lowest = min(space.elements, key=lambda element: (element.layer, element.width))
    every = frozenset(element.key for element in space.elements)
    choices: tuple[frozenset[str], ...] = (frozenset(), frozenset({lowest.key}), every)
    with no_trace(problem.network, space):
        rounds = [[_seconds(problem, batch, on) for on in choices] for _ in range(_ROUNDS + 1)][1:]
    without, with_lowest, with_all = (min(column) for column in zip(*rounds, strict=True))
    own = lowest.width
    others = sum(element.width for element in space.elements) - own
    width = max(0.0, with_all - with_lowest) / others if others else 0.0
    passed = len(space.blocks) - lowest.after(len(space.blocks))
    block = max(0.0, with_lowest - without - width * own) / passed if passed else 0.0
    return StepTime(len(space.blocks), without, block, width)


def _seconds(problem: Problem, batch: Batch, on: frozenset[str]) -> float:
    problem.space.switch(on)
    _wait(problem)
    start = time.perf_counter()
    loss = problem.evaluate(batch).mean
    if on:
        parameters = [parameter for low_rank in problem.space.on() for parameter in (low_rank.A, low_rank.B)]
        torch.autograd.grad(loss, parameters)
    _wait(problem)
    return time.perf_counter() - start


def _wait(problem: Problem) -> None:
    if problem.space.device.type != "cpu":
        torch.accelerator.synchronize(problem.space.device)
