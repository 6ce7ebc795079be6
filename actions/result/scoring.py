"""What scoring leaves: `scores.toml`, pictures, tables, and the commands that go on from there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from actions.run.console import note, say
from actions.run.run_folder import CONFIG, LORA, SCORES, SHORTCUT, write_config
from actions.training.experiment import Experiment
from actions.training.loggers import build_loggers, log_pictures
from actions.training.stability import agreement_in_words
from heterolora.choosing import scores
from heterolora.choosing.allocation import Mode, Scored, of_kind, tie_generator
from heterolora.choosing.ranks import Budget, choose
from heterolora.choosing.scores import Scores
from heterolora.choosing.words import degenerate, with_cost
from heterolora.pictures.of_run import draw, of_scores
from heterolora.saliency.score import why_all_equal
from options.every import Options

SHOWN = 10  # elements in the table


def report_scores(experiment: Experiment, found: Scores, mode: Mode, folder: Path) -> None:
    """Write the scores and draw them, print the best elements, and what a choice at this budget costs."""
    options, scored, test = experiment.options, found.scored, found.importance_test_name
    limit = replace(options.reallocation.budget, step_time=found.step_time)
    on = choose(scored, limit, mode, tie_generator(options.seed, 0))
    write_config(folder, experiment.task.record.action, options, experiment.task.record.configs)
    scores.write(folder / SCORES, found)
    pictures = draw(of_scores(found, on, " ".join(options.reallocation.budget_flags)), folder)
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
    rankings: dict[Mode, list[Sequence[Scored]]]
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


def next_commands(options: Options, shortcuts: bool, folder: Path) -> str:
    """The commands that make a configuration from the scores, and train it."""
    reallocate = ["python", "tools/realloc_lora_rank.py", folder / SCORES]
    reallocate += [*options.reallocation.budget_flags, "--output", folder / LORA]
    if shortcuts:
        reallocate += ["--shortcut-output", folder / SHORTCUT]
    if options.reallocation.dyrealloc_ags_mode is not None:
        reallocate += ["--mode", options.reallocation.dyrealloc_ags_mode]
    return "\n".join(["next:", f"  {shlex.join(map(str, reallocate))}", *training_command(options, shortcuts, folder)])


def training_command(options: Options, shortcuts: bool, folder: Path) -> list[str]:
    """The line with the command that trains the configurations of a run folder; none if the base has its own."""
    if options.load_type in ("pl", "peft"):
        return []
    command = ["python", "-m", "main", "train", "--config", folder / CONFIG, "--lora-config", folder / LORA]
    command += ["--shortcut-config", folder / SHORTCUT] if shortcuts else []
    return [f"  {shlex.join(map(str, command))}"]
