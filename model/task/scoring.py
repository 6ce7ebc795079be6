"""A task and scoring batches → what a heuristic sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from model.saliency.problem import Batch, Metric, Problem, Result, Track, untracked
from model.task.fine_tuning import FineTuning


def scoring_problem(
    task: FineTuning,
    batches: Sequence[Batch],
    tolerance: float,
    track: Track = untracked,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Problem:
    """The problem of scoring the elements of `task`.

    Args:
        task: an adapted network and its loss.
        batches: this process's share of the scoring batches, on the task's device.
        tolerance: `--metric-red-tolerance`.
        track: shows progress.
        precision: what a forward pass runs under, e.g. a trainer's `precision_plugin.forward_context`.
    """
    space = task.space
    if space is None:
        raise ValueError("a plain model has no elements to score")

    def evaluate(batch: Batch) -> Result:
        with precision():
            losses = task.losses(batch)
        return Result(losses.total, losses.count, losses.logits)

    classifies = task.spec.task == "classification"
    metric = Metric(task.spec.metrics[0] if classifies else "loss", task.spec.num_labels, tolerance)
    return Problem(task.network, space, evaluate, batches, metric, track)
