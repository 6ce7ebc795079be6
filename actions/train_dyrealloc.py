"""`train-dyrealloc`: fine-tune while deciding, again and again, which elements are worth their parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from actions import train
from actions.console import is_first_process, note, say
from actions.experiment import Experiment
from actions.export import ADAPTER, export_run
from actions.loggers import log_pictures
from actions.options import Options
from actions.pictures import heat_map
from actions.resolve import Request
from actions.scoring import check_scoring
from actions.timeline import timeline
from heterolora import allocation, saliency
from heterolora.allocation import Mode
from heterolora.errors import UserError
from heterolora.history import FREQUENCY, HISTORY, History
from heterolora.saliency.from_training import TrainingGradients
from heterolora.saliency.gradients import GradientHeuristic
from heterolora.search_space import SearchSpace
from model.reallocation.callback import Reallocate, ScoreSource, Settings
from model.reallocation.sources import DedicatedScores, TrainingScores

FREQUENCY_PICTURE, TIMELINE_PICTURE = "reallocation_frequency.png", "reallocation_timeline.png"


def run(request: Request) -> None:
    mode = check_scoring(request)
    _check_source(request.options)
    experiment, folder = train.start(request)
    say(_budget(experiment.task.space, request.options, mode))
    reallocate = Reallocate(_settings(request.options, mode), _source(experiment), folder, note)
    train.fit(experiment, folder, (reallocate,))
    if is_first_process():
        draw(reallocate.history, folder)
    export_run(experiment, folder)
    log_pictures(experiment.task.trainer.loggers, (folder / ADAPTER).glob("*.png"))
    decisions = reallocate.history.decisions
    say(f"{len(decisions)} reallocations; scoring took {reallocate.share_of_time:.1%} of the time of training")
    say(f"history: {folder / HISTORY}, {FREQUENCY}; pictures: {FREQUENCY_PICTURE}, {TIMELINE_PICTURE}")


def draw(history: History, folder: Path) -> None:
    """How often each element was on, and when."""
    times, total = history.times_on(), len(history.decisions)
    heat_map(
        folder / FREQUENCY_PICTURE,
        {place: float(times[place.key]) for place in history.places},
        title=f"How often each element was on, of {total} reallocations",
        marked=history.last_on(),
    )
    timeline(folder / TIMELINE_PICTURE, (folder.name, history))


def _budget(space: SearchSpace, options: Options, mode: Mode) -> str:
    """What will be on, in one line."""
    lora, shortcuts = len(space.of_kind("lora")), len(space.of_kind("shortcut"))
    share = allocation.share(options.turn_on_percentile, lora, 0 if mode == "off" else shortcuts)
    if mode == "combined":
        text = f"{share.lora + share.shortcut} of {lora + shortcuts} elements"
    else:
        text = f"{share.lora} of {lora} LoRA elements"
        if shortcuts:
            text += f" and {shortcuts if mode == 'off' else share.shortcut} of {shortcuts} shortcuts"
    return f"budget (mode {mode}): {text} on at a time"


def _check_source(options: Options) -> None:
    test = options.importance_test_name
    if options.imp_source == "training" and not isinstance(saliency.get(test).score, GradientHeuristic):
        formulas = [name for name in saliency.names() if isinstance(saliency.get(name).score, GradientHeuristic)]
        raise UserError(
            f"--imp-source training does not go with {test}, which is no formula in gradients",
            f"use --imp-source dedicated, or --importance-test-name {', '.join(formulas)}",
        )


def _settings(options: Options, mode: Mode) -> Settings:
    warmup = options.realloc_warmup_epochs
    if warmup is None:  # what scores 0 for ever where B stays 0
        warmup = int(saliency.get(options.importance_test_name).warmup_batches > 0)
    return Settings(options.realloc_N, options.turn_on_percentile, mode, warmup, options.seed)


def _source(experiment: Experiment) -> ScoreSource:
    options, task = experiment.options, experiment.task

    def track(items: Sequence[Any], what: str) -> Iterable[Any]:
        return task.trainer.progress_bar_callback.track(items, what)

    test, limit = options.importance_test_name, options.imp_limit_test_batches
    dedicated = DedicatedScores(test, limit, options.metric_red_tolerance, track, note)
    if options.imp_source == "dedicated":
        return dedicated
    return TrainingScores(TrainingGradients(task.space, saliency.get(test).score), limit, first=dedicated)
