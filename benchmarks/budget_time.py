"""Training step with the elements that --budget-time chooses, against the predicted share of the time of a step.

LoRA is on all six projections, with random scores. The constants of the prediction are measured on the same batch, as
`imp-test` and `train-dyrealloc` measure them. Then the steps of all choices are timed in turn.
"""

from __future__ import annotations

import argparse
import random

import torch
from rich.table import Table

from actions.run.console import say
from benchmarks import measure, subjects
from heterolora.choosing.allocation import Scored
from heterolora.choosing.ranks import Budget, choose
from heterolora.common.errors import UserError
from heterolora.elements.element import Element
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch, Loss, Problem
from model.task.timing import measured

SHARES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of the time of a step with all elements on
ALL_ON = "all on"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The common options only."""


def run(args: argparse.Namespace) -> None:
    batch = subjects.batch(args)
    network, space = subjects.adapted(subjects.base(args), subjects.lora(args.rank, subjects.ALL))
    with measure.one_thread():
        time = measured(problem(network, space), batch)
    every = {element.key: element for element in space.elements}
    draw = random.Random(0)
    scored = [Scored(element, draw.random()) for element in every.values()]
    chosen = {}
    for share in SHARES:
        try:
            keys = choose(scored, Budget("time", share, time), "off", draw)
        except UserError as error:  # the forward pass alone takes longer
            say(f"--budget-time {share:g}: {error}")
        else:
            chosen[f"{share:g}"] = [every[key] for key in keys]
    chosen[ALL_ON] = list(every.values())

    steps = {name: _step(network, space, on, batch) for name, on in chosen.items()}
    seconds = measure.by_turns(steps, args.rounds, args.device)
    say(measure.heading(args, "training step of opt_lora with the elements within a share of its time"))
    table = Table("--budget-time", "on", "lowest block", "predicted", f"measured, {args.rounds} rounds")
    for name, on in chosen.items():
        lowest = min(element.layer for element in on)
        predicted = time.of(on) / time.of(every.values())
        table.add_row(name, f"{len(on)}", f"{lowest}", f"{predicted:.2f}", str(seconds.ratio(name, ALL_ON)))
    say(table)


def problem(network: torch.nn.Module, space: SearchSpace) -> Problem:
    """Scoring without batches."""

    def evaluate(batch: Batch) -> Loss:
        rows = len(batch["labels"])
        return Loss(network(**batch).loss * rows, torch.tensor(rows))

    return Problem(network, space, evaluate, ())


def _step(network: torch.nn.Module, space: SearchSpace, on: list[Element], batch: Batch) -> measure.Step:
    """Forward, backward and AdamW, with only the elements `on`."""
    keys = {element.key for element in on}
    step = subjects.training_step(network, batch)

    def switched() -> None:
        space.switch(keys)
        step()

    return switched
