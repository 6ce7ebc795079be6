"""`imp-test`: score every element once before training, and show which elements a budget would turn on."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import track
from rich.table import Table

from actions.command.request import Request
from actions.result.pictures import heat_map, scatter
from actions.result.stability import FEWEST, agreement_in_words, rank_correlation, with_halves
from actions.run.console import is_first_process, note, say
from actions.run.endings import end_with_this_process
from actions.run.processes import cluster_environment
from actions.run.run_folder import CONFIG, LORA, SCORES, SHORTCUT, open_run, write_config
from actions.training.agreement import check_agreement
from actions.training.experiment import Experiment, build
from actions.training.loggers import build_loggers, log_pictures
from actions.training.strategy import ScoringStrategy
from actions.training.trainer import check_devices
from dataset.batching.module import TextDataModule
from heterolora import saliency
from heterolora.choosing import scores
from heterolora.choosing.allocation import Mode, Scored, check_mode, default_mode, of_kind, tie_generator
from heterolora.choosing.ranks import Budget, choose
from heterolora.choosing.scores import Scores
from heterolora.choosing.words import degenerate, with_cost
from heterolora.common.errors import UserError
from heterolora.saliency.problem import Batch
from heterolora.saliency.score import scored, why_all_equal
from heterolora.saliency.warm_up import WarmUp, is_fresh
from model.task.scoring import batch_count, scoring_problem
from model.task.timing import measured
from options.every import Options

PICTURE, STABILITY_PICTURE = "scores.png", "stability.png"
SHOWN = 10  # elements in the table


def run(request: Request) -> None:
    mode = check_scoring(request)
    check_devices(request.options)
    with open_run(request) as opened:
        experiment, folder = build(request), opened.folder
        devices = request.options.devices
        strategy = "auto" if devices.world == 1 else ScoringStrategy()
        fabric = Fabric(**devices.for_lightning(strategy), plugins=cluster_environment())
        try:
            fabric.launch()
            check_agreement(experiment)
            say(f"run folder: {folder}")
            found, seconds = _score(experiment, fabric, mode)
            if is_first_process():
                _report(experiment, found, mode, folder)
                say(f"scored {len(found.scored)} elements in {seconds:.1f} s: {folder / SCORES}, {folder / PICTURE}")
                say(_next(experiment.options, found.has_shortcuts, folder))
        except BaseException:
            end_with_this_process(fabric.strategy.launcher)
            raise


def check_scoring(request: Request) -> Mode:
    """The allocation mode. Raises UserError if the model has no elements to score, or does not fit the mode."""
    if request.adapted is None:
        raise UserError(
            f"--model '{request.options.model}' is a plain model: {request.action} has no elements to score",
            "use <family>_lora or <family>_lora_ags, and --load for the plain model",
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


def _score(experiment: Experiment, fabric: Fabric, mode: Mode) -> tuple[Scores, float]:
    """The scores, and the duration of scoring in seconds, including warm-up. Raises UserError for too short a time."""
    options, data, task = experiment.options.scoring, experiment.data, experiment.task
    heuristic = saliency.get(options.importance_test_name)
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
        alike = [Scored(element, 1.0) for element in task.space.elements]
        choose(alike, replace(budget, step_time=step_time), mode, tie_generator(0, 0))
    start = time.perf_counter()
    items = scored(heuristic.name, problem, warm_up)
    seconds = time.perf_counter() - start
    count = batch_count(limit, data.scoring_batch_count)[0]
    if options.imp_halves and "batches" not in heuristic.ignores and count >= FEWEST * fabric.world_size:
        items = with_halves(heuristic.name, items, problem, warm_up)
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


def _report(experiment: Experiment, found: Scores, mode: Mode, folder: Path) -> None:
    options, scored, test = experiment.options, found.scored, found.importance_test_name
    limit = replace(options.reallocation.budget, step_time=found.step_time)
    on = choose(scored, limit, mode, tie_generator(options.seed, 0))
    write_config(folder, experiment.task.record.action, options, experiment.task.record.configs)
    scores.write(folder / SCORES, found)
    heat_map(
        folder / PICTURE,
        {item.element: item.score for item in scored},
        title=f"{test}: {options.model} on {experiment.data.spec.name}",
        marked=on,
        label=test,
        mark=f"on at {' '.join(options.reallocation.budget_flags)}",
    )
    pictures = [folder / PICTURE]
    if found.stability is not None:
        points = {item.element: item.halves for item in scored}
        title = f"{test}: two halves of the batches, rank correlation {found.stability:.2f}"
        scatter(folder / STABILITY_PICTURE, points, title, on)
        pictures.append(folder / STABILITY_PICTURE)
    say(_table(scored, on))
    values = {item.element.key: item.score for item in scored}
    why = why_all_equal(test, values) or _ties(scored, on, mode, options.reallocation.budget)
    if why is not None:
        note(why)
    if found.stability is not None:
        say(agreement_in_words(found.stability))
    elements = [item.element for item in scored]
    chosen = [element for element in elements if element.key in on]
    say(f"at this budget: {with_cost(elements, chosen, found.step_time)}")
    if (warning := degenerate(elements, on)) is not None:
        note(warning)
    log_pictures(build_loggers(options, folder), pictures)  # a tracker may refuse


def _table(scored: Sequence[Scored], on: frozenset[str]) -> Table:
    """The best elements."""
    best = sorted(scored, key=lambda item: (-item.score, item.element.key not in on))[:SHOWN]
    table = Table("element", "score", "of the sum", "on", title=f"The best {len(best)} of {len(scored)} elements")
    for column in table.columns[1:3]:
        column.justify = "right"
    total = sum(item.score for item in scored)
    for item in best:
        share = f"{item.score / total:.1%}" if total else "–"
        table.add_row(item.element.key, f"{item.score:.4g}", share, "on" if item.element.key in on else "")
    return table


def _ties(scored: Sequence[Scored], on: frozenset[str], mode: Mode, budget: Budget) -> str | None:
    """A note if the budget ends among equal scores, so that ties were broken at random; None otherwise."""
    if budget.unit == "time":  # not spent in the order of the scores
        return None
    lora, shortcuts = of_kind(scored, "lora"), of_kind(scored, "shortcut")
    rankings = {"off": [lora], "separated": [lora, shortcuts], "combined": [scored]}
    for ranking in rankings[mode]:
        lowest = min((item.score for item in ranking if item.element.key in on), default=None)
        tied = [item.element for item in ranking if item.score == lowest]
        chosen = [element for element in tied if element.key in on]
        sizes = {element.parameters for element in chosen}
        tied = [element for element in tied if budget.unit == "share" or element.parameters in sizes]
        if len(chosen) < len(tied):
            return f"{len(chosen)} elements that are on were chosen at random from {len(tied)} with score {lowest:g}"
    return None


def _next(options: Options, shortcuts: bool, folder: Path) -> str:
    """The commands that make a configuration from the scores, and train it."""
    reallocate = ["python", "tools/realloc_lora_rank.py", folder / SCORES]
    reallocate += [*options.reallocation.budget_flags, "--output", folder / LORA]
    if shortcuts:
        reallocate += ["--shortcut-output", folder / SHORTCUT]
    if options.reallocation.dyrealloc_ags_mode is not None:
        reallocate += ["--mode", options.reallocation.dyrealloc_ags_mode]
    return "\n".join(["next:", f"  {shlex.join(map(str, reallocate))}", *training(options, shortcuts, folder)])


def training(options: Options, shortcuts: bool, folder: Path) -> list[str]:
    """The line with the command that trains the configurations of a run folder; none if the base has its own."""
    if options.load_type in ("pl", "peft"):
        return []
    command = ["python", "-m", "main", "train", "--config", folder / CONFIG, "--lora-config", folder / LORA]
    command += ["--shortcut-config", folder / SHORTCUT] if shortcuts else []
    return [f"  {shlex.join(map(str, command))}"]
