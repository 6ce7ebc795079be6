"""Makes the input of a heuristic from a task and scoring batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import Any

from heterolora.saliency.problem import Batch, Loss, Movement, Problem, Track, untracked
from model import metrics
from model.sharding import is_sharded
from model.task.fine_tuning import FineTuning


def scoring_problem(
    task: FineTuning,
    batches: Sequence[Batch],
    tolerance: float,
    track: Track = untracked,
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext,
    movement: Movement | None = None,
) -> Problem:
    """Return the problem of scoring the elements of `task`, an adapted network and its loss.

    Args:
        batches: this process's share of the scoring batches, on the device of the task. The last one may be a filler.
        tolerance: `--metric-red-tolerance`.
        precision: the context of a forward pass, such as a trainer's `precision_plugin.forward_context`.
        movement: what the optimizer will do with the elements that are chosen.
    """
    if task.space is None:
        raise ValueError("a plain model has no elements to score")

    def evaluate(batch: Batch) -> Loss:
        with precision():
            return task.loss(batch)

    name = task.spec.metrics[0] if task.spec.classifies else "loss"
    metric = metrics.scoring_metric(name, task.spec.num_labels, tolerance, task.spec.multi_label)
    real = batches[:-1] if batches and not bool(batches[-1]["weight"].any()) else batches
    fillers = batches[len(real) :] if is_sharded(task.network) else ()
    return Problem(task.network, task.space, evaluate, real, metric, track, movement or Movement(), fillers)


def batch_count(limit: int | float, available: int) -> tuple[int, str | None]:
    """Return the number of scoring batches, and a line to print if the training set has fewer than `limit`.

    `limit` is `--imp-limit-test-batches`. An int counts batches. A float in (0, 1] is a share, rounded up.
    """
    asked = math.ceil(Decimal(str(limit)) * available) if isinstance(limit, float) else limit
    if asked <= available:
        return asked, None
    return available, f"--imp-limit-test-batches {asked} is more than the training set has: all {available} are used"
