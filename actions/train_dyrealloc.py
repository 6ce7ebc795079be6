"""`train-dyrealloc`: fine-tune, and reallocate the elements during training."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from actions import train
from actions.command.request import Request
from actions.imp_test import check_scoring, scoring_batches, training
from actions.result.pictures import heat_map, timeline
from actions.run.console import is_first_process, note, say
from actions.run.requeue import requeued_if_stopped
from actions.run.run_folder import open_run
from actions.training.experiment import Experiment
from actions.training.trainer import check_devices
from heterolora import saliency
from heterolora.choosing import allocation
from heterolora.choosing.allocation import Scored
from heterolora.choosing.history import FREQUENCY, HISTORY, History
from heterolora.choosing.ranks import TopK, assign
from heterolora.choosing.step_time import StepTime
from heterolora.choosing.words import degenerate, never_changed, with_cost
from heterolora.common.errors import UserError
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.from_training import TrainingGradients
from heterolora.saliency.gradients import GradientHeuristic
from model.reallocation.callback import Reallocate, ScoreSource
from model.reallocation.sources import DedicatedScores, TrainingScores
from model.task.fine_tuning import FineTuning
from model.task.scoring import scoring_problem
from model.task.timing import measured
from options.scoring import ReallocationOptions, ScoringOptions

FREQUENCY_PICTURE, TIMELINE_PICTURE = "reallocation_frequency.png", "reallocation_timeline.png"


def run(request: Request) -> None:
    mode, scoring = check_scoring(request), request.options.scoring
    _check_source(scoring)
    options = replace(request.options.reallocation, dyrealloc_ags_mode=mode)
    if options.realloc_warmup_epochs is None:
        # An element that was never on has B = 0, which some heuristics always score 0.
        needs_warmup = saliency.get(scoring.importance_test_name).warmup_batches > 0
        options = replace(options, realloc_warmup_epochs=int(needs_warmup))
    check_devices(request.options)
    with requeued_if_stopped(request.options.run), open_run(request) as opened:
        experiment, folder = train.start(request, opened.folder), opened.folder
        say(_budget(experiment.task.space, options))
        source, step_time = _source(experiment), _step_time(experiment)
        reallocate = Reallocate(options, request.options.seed, source, folder, note, step_time)
        train.fit(experiment, opened, (reallocate,))
        if is_first_process():
            draw(reallocate.history, folder)
        train.finish(experiment, folder)
    decisions = reallocate.history.decisions
    say(f"{len(decisions)} reallocations; scoring took {reallocate.share_of_time:.1%} of the training time")
    space = experiment.task.space
    on = [low_rank.element for low_rank in space.on()]
    keys, elements, places = {element.key for element in on}, space.elements, space.places()
    say(f"the result: {with_cost(elements, on, reallocate.limit.step_time, places)}")
    for warning in (degenerate(elements, keys), never_changed(reallocate.history)):
        if warning is not None:
            note(warning)
    say(f"history: {folder / HISTORY}, {FREQUENCY}; pictures: {FREQUENCY_PICTURE}, {TIMELINE_PICTURE}")
    if again := training(request.options, request.adapted.shortcuts, folder):
        say("\n".join(["next, to train this choice from the start:", *again]))


def draw(history: History, folder: Path) -> None:
    """Draw how often each element was on, and when."""
    times, total = history.times_on(), len(history.decisions)
    heat_map(
        folder / FREQUENCY_PICTURE,
        {place: float(times[place.key]) for place in history.places},
        title=f"How often each element was on, of {total} reallocations",
        marked=history.last_on(),
        label="times on",
        mark="on after the last reallocation",
    )
    timeline(folder / TIMELINE_PICTURE, (folder.name, history))


def _budget(space: SearchSpace, options: ReallocationOptions) -> str:
    """A line that says how many elements, or parameters, will be on."""
    if options.budget_time is not None:
        part = f"{options.budget_time:g} of the time of a step with all elements on"
        return f"budget (mode {options.dyrealloc_ags_mode}): {part}"
    if options.budget_parameters is not None:
        unscored = [Scored(element, 0.0) for element in space.elements]
        ties = allocation.tie_generator(0, 0)
        parts = assign(unscored, TopK(), options.budget, options.dyrealloc_ags_mode, ties).spending
        texts = (f"{part.budget:,} of {part.whole:,} parameters of {part.title}" for part in parts)
        return f"budget (mode {options.dyrealloc_ags_mode}): {' and '.join(texts)} on at a time"
    mode, lora, shortcuts = options.dyrealloc_ags_mode, len(space.of_kind("lora")), len(space.of_kind("shortcut"))
    share = allocation.element_counts(options.budget.amount, lora, 0 if mode == "off" else shortcuts)
    if mode == "combined":
        text = f"{share.lora + share.shortcut} of {lora + shortcuts} elements"
    else:
        text = f"{share.lora} of {lora} LoRA elements"
        if shortcuts:
            text += f" and {shortcuts if mode == 'off' else share.shortcut} of {shortcuts} shortcuts"
    return f"budget (mode {mode}): {text} on at a time"


def _check_source(options: ScoringOptions) -> None:
    test = options.importance_test_name
    if options.imp_source == "training" and not isinstance(saliency.get(test).score, GradientHeuristic):
        formulas = [name for name in saliency.names() if isinstance(saliency.get(name).score, GradientHeuristic)]
        raise UserError(
            f"--imp-source training cannot be used with {test}, which is not computed from gradients alone",
            f"use --imp-source dedicated, or --importance-test-name {', '.join(formulas)}",
        )


def _step_time(experiment: Experiment) -> Callable[[pl.Trainer, FineTuning], StepTime]:
    """Measures a step on the first scoring batch."""

    def step_time(trainer: pl.Trainer, task: FineTuning) -> StepTime:
        (first,) = experiment.data.scoring_batches(1)
        batch = trainer.strategy.batch_to_device(first)
        return measured(scoring_problem(task, [], 0.0, precision=trainer.precision_plugin.forward_context), batch)

    return step_time


def _source(experiment: Experiment) -> ScoreSource:
    options, task = experiment.options.scoring, experiment.task

    def track(items: Sequence[Any], what: str) -> Iterable[Any]:
        return task.trainer.progress_bar_callback.track(items, what)

    limit, test = options.imp_limit_test_batches, options.importance_test_name
    batches = functools.partial(scoring_batches, experiment.data, limit, heuristic=test)
    dedicated = DedicatedScores(options, batches, track)
    if options.imp_source == "dedicated":
        return dedicated
    gradients = TrainingGradients(task.space, saliency.get(options.importance_test_name).score)
    return TrainingScores(gradients, options.imp_limit_test_batches, first=dedicated)
