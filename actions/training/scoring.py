"""The scores of the elements of an experiment, before training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import track

from actions.command.request import Request
from actions.run.console import is_first_process, note
from actions.training.experiment import Experiment
from actions.training.stability import rank_correlation
from dataset.batching.module import TextDataModule
from heterolora import saliency
from heterolora.choosing.allocation import Mode, Scored, check_mode, default_mode, tie_generator
from heterolora.choosing.ranks import choose
from heterolora.choosing.scores import Scores
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.saliency.problem import Batch
from heterolora.saliency.score import FEWEST_FOR_HALVES, scored
from heterolora.saliency.warm_up import WarmUp, is_fresh
from model.task.scoring import batch_count, scoring_problem
from model.task.timing import measured


def check_scoring(request: Request) -> Mode:
    """The allocation mode. Raises UserError if the model has no elements to score, or does not fit the mode."""
    if request.adapted is None:
        raise UserError(
            f"--model '{request.options.model}' is a plain model: {request.action} has no elements to score",
            "use --model lora or lora_ags, and --load for the plain model",
        )
    mode = request.options.reallocation.dyrealloc_ags_mode or default_mode(request.adapted.shortcuts)
    check_mode(mode, has_lora=True, has_shortcuts=request.adapted.shortcuts)
    return mode


def scoring_batches(
    data: TextDataModule, limit: int | float, rank: int, world: int, heuristic: str | None = None
) -> Iterable[Batch]:
    """The scoring batches of process `rank` of `world`, as many on each process with fillers.

    For a heuristic whose scores do not depend on how rows are cut into batches, they are cut by length. Prints a note
    if `limit` exceeds the training set.
    """
    count, remark = batch_count(limit, data.scoring_batch_count)
    if remark is not None:
        note(remark)
    by_length = heuristic is not None and "cut" in saliency.get(heuristic).ignores
    return data.scoring_batches(count, rank, world, filled=True, by_length=by_length)


def score(experiment: Experiment, fabric: Fabric, mode: Mode) -> tuple[Scores, float]:
    """The scores, and the duration of scoring in seconds, including warm-up. Raises UserError for too short a time."""
    options, data, task = experiment.options.scoring, experiment.data, experiment.task
    heuristic = saliency.get(present(options.importance_test_name))
    with fabric.rank_zero_first(local=True):  # the other processes read the cache
        data.encoded(data.splits.train)
    task.shard(fabric.device)
    task.to(fabric.device)
    limit = options.imp_limit_test_batches
    share = list(scoring_batches(data, limit, fabric.global_rank, fabric.world_size, heuristic.name))
    problem = scoring_problem(
        task, fabric.to_device(share), options.metric_red_tolerance, _tracked, precision=fabric.autocast
    )
    steps = heuristic.warmup_batches if options.imp_warmup_batches is None else options.imp_warmup_batches
    if steps and not is_fresh(problem):
        note("no warm-up: the elements are trained already (B is not 0)")
        steps = 0
    if steps > data.scoring_batch_count:
        note(f"--imp-warmup-batches {steps} is more than the training set has: {data.scoring_batch_count} are used")
    warm_up = WarmUp(fabric.to_device(list(data.scoring_batches(steps))), options.imp_warmup_lr)
    if heuristic.remark:
        note(heuristic.remark)
    budget, step_time = experiment.options.reallocation.budget, None
    if options.imp_step_time or budget.unit == "time":
        (first,) = data.scoring_batches(1)
        step_time = fabric.broadcast(measured(problem, fabric.to_device(first)))
    if budget.unit == "time":  # so short a time is found before the scores are computed
        alike = [Scored(element, 1.0) for element in problem.space.elements]
        choose(alike, replace(budget, step_time=step_time), mode, tie_generator(0, 0))
    count = batch_count(limit, data.scoring_batch_count)[0]
    halves = options.imp_halves and "batches" not in heuristic.ignores
    start = time.perf_counter()
    items = scored(heuristic.name, problem, warm_up, halves and count >= FEWEST_FOR_HALVES * fabric.world_size)
    seconds = time.perf_counter() - start
    found = Scores(
        scored=items,
        importance_test_name=heuristic.name,
        task=task.spec.task,
        dataset=experiment.options.dataset,
        model=experiment.options.model,
        load=task.record.base.name,
        batches=count,
        batch_size=experiment.options.data.batch_size,
        seed=experiment.options.seed,
        renormalize=task.record.renormalizes,
        step_time=step_time,
        stability=rank_correlation(items),
    )
    return found, seconds


def _tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Show a progress bar on a terminal, from the first process."""
    console = Console(stderr=True)
    shown = is_first_process() and console.is_terminal
    return track(items, what, console=console, transient=True, disable=not shown)
