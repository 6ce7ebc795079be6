"""A task and scoring batches → what a heuristic sees."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import Any

import pytorch_lightning as pl

from heterolora.saliency.problem import Batch, Loss, Problem, Track, untracked
from model import metrics
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

    def evaluate(batch: Batch) -> Loss:
        with precision():
            return task.loss(batch)

    classifies = task.spec.task == "classification"
    name = task.spec.metrics[0] if classifies else "loss"
    metric = metrics.scoring_metric(name, task.spec.num_labels, tolerance)
    return Problem(task.network, space, evaluate, batches, metric, track)


def batch_count(limit: int | float, there: int) -> tuple[int, str | None]:
    """`--imp-limit-test-batches` → how many scoring batches that is of those that are there, and what to say of it.

    Args:
        limit: an int counts batches, a float in (0, 1] is a share, rounded up.
        there: batches in the whole training set.
    """
    asked = math.ceil(Decimal(str(limit)) * there) if isinstance(limit, float) else limit
    if asked <= there:
        return asked, None
    return there, f"--imp-limit-test-batches {asked} is more than the training set has: all {there} are used"


def scoring_batches(trainer: pl.Trainer, limit: int | float, note: Callable[[str], None]) -> list[Batch]:
    """This process's share of the scoring batches, on its device."""
    count, remark = batch_count(limit, trainer.datamodule.scoring_batch_count)
    if remark is not None:
        note(remark)
    share = trainer.datamodule.scoring_batches(count, trainer.global_rank, trainer.world_size)
    return [trainer.strategy.batch_to_device(batch) for batch in share]
