"""What `train-dyrealloc` adds to training: the options of a search, and the callback that reallocates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from actions.command.request import Request
from actions.run.console import note
from actions.training.callbacks import Progress
from actions.training.experiment import Experiment, search_plan
from actions.training.scoring import check_scoring, scoring_batches
from heterolora import saliency
from heterolora.choosing.step_time import StepTime
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.saliency.from_training import TrainingGradients
from heterolora.saliency.gradients import GradientHeuristic
from model.reallocation.callback import Reallocate, ScoreSource
from model.reallocation.sources import DedicatedScores, TrainingScores
from model.reallocation.tolerance import Tolerance
from model.task.fine_tuning import FineTuning
from model.task.scoring import scoring_problem
from model.task.timing import measured
from options.scoring import ReallocationOptions, ScoringOptions


def search_options(request: Request) -> ReallocationOptions:
    """The options of the search, all decided. Raises UserError if the model or the source of scores does not fit."""
    mode, scoring, options = check_scoring(request), request.options.scoring, request.options.reallocation
    _check_source(scoring, options)
    if options.realloc_warmup_epochs is None:
        # An element that was never on has B = 0, which some heuristics always score 0.
        needs_warmup = saliency.get(present(scoring.importance_test_name)).warmup_batches > 0
        options = replace(options, realloc_warmup_epochs=int(needs_warmup))
    return replace(options, dyrealloc_ags_mode=mode)


def reallocation(experiment: Experiment, options: ReallocationOptions, folder: Path) -> Reallocate:
    """The callback, which writes the history into `folder`."""
    plan = search_plan(experiment.options, present(options.dyrealloc_ags_mode))
    source = ScoreSource() if plan.shrinks else _source(experiment)
    warmup_epochs = present(options.realloc_warmup_epochs)
    tolerance = None if options.shrink_tolerance is None else Tolerance(options.shrink_tolerance)
    how = (note, _step_time(experiment), tolerance)
    return Reallocate(plan, options.realloc_N, warmup_epochs, source, folder, *how)


def _check_source(scoring: ScoringOptions, options: ReallocationOptions) -> None:
    test = present(scoring.importance_test_name)
    source = "--imp-source training" if scoring.imp_source == "training" else None
    source, other = (
        ("--budget-schedule shrink", "--budget-schedule fixed")
        if options.shrinks
        else (source, "--imp-source dedicated")
    )
    if source is not None and not isinstance(saliency.get(test).score, GradientHeuristic):
        formulas = [name for name in saliency.names() if isinstance(saliency.get(name).score, GradientHeuristic)]
        raise UserError(
            f"{source} cannot be used with {test}, which is not computed from gradients alone",
            f"use {other}, or --importance-test-name {', '.join(formulas)}",
        )


def _step_time(experiment: Experiment) -> Callable[[pl.Trainer, FineTuning], StepTime]:
    """Measure a step on the first scoring batch."""

    def step_time(trainer: pl.Trainer, task: FineTuning) -> StepTime:
        (first,) = experiment.data.scoring_batches(1)
        batch = trainer.strategy.batch_to_device(first)
        return measured(scoring_problem(task, [], 0.0, precision=trainer.precision_plugin.forward_context), batch)

    return step_time


def _source(experiment: Experiment) -> ScoreSource:
    options, task = experiment.options.scoring, experiment.task

    def track(items: Sequence[Any], what: str) -> Iterable[Any]:
        bar = task.trainer.progress_bar_callback
        return bar.track(items, what) if isinstance(bar, Progress) else items

    limit, test = options.imp_limit_test_batches, present(options.importance_test_name)
    batches = functools.partial(scoring_batches, experiment.data, limit, heuristic=test)
    dedicated = DedicatedScores(options, batches, track)
    if options.imp_source == "dedicated":
        return dedicated
    score = saliency.get(test).score
    assert isinstance(score, GradientHeuristic)  # see `_check_source`
    return TrainingScores(TrainingGradients(present(task.space), score), limit, first=dedicated)
