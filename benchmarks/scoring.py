"""What `imp-test` measures besides the scores, against the scores alone: two halves of the batches, and the step time.

LoRA is on all six projections. "Halves apart" scores each half in passes of its own, as is done for a heuristic that is
no sum over batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from tools.cli import whole_number

from actions.run.console import say
from benchmarks import measure, subjects
from benchmarks.budget_time import problem
from heterolora import saliency
from heterolora.saliency.problem import Problem
from heterolora.saliency.score import FEWEST_FOR_HALVES, scored
from model.task.timing import measured
from options.ranges import at_least

SCORES = "scores"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(hidden_size=384, rows=8)
    parser.add_argument(
        "--batches",
        type=whole_number(at_least(FEWEST_FOR_HALVES)),
        default=8,
        metavar="N",
        help="scoring batches (default: %(default)s)",
    )
    parser.add_argument(
        "--heuristic", choices=saliency.names(), default="grad_norm", metavar="NAME", help="default: %(default)s"
    )


def run(args: argparse.Namespace) -> None:
    network, space = subjects.adapted(subjects.base(args), subjects.lora(args.rank, subjects.ALL))
    batch = subjects.batch(args)
    asked = replace(problem(network, space), batches=[batch] * args.batches)
    ways: dict[str, Callable[[], Any]] = {
        SCORES: partial(scored, args.heuristic, asked),
        "scores and halves": partial(scored, args.heuristic, asked, halves=True),
        "scores, and halves apart": partial(_apart, args.heuristic, asked),
        "scores and step time": partial(_with_step_time, args.heuristic, asked),
    }
    seconds = measure.by_turns(ways, args.rounds, args.device)
    say(measure.heading(args, f"scoring of opt_lora by {args.heuristic} on {args.batches} batches"))
    say(seconds.table(SCORES))


def _apart(heuristic: str, asked: Problem) -> None:
    for batches in (asked.batches, asked.batches[::2], asked.batches[1::2]):
        scored(heuristic, replace(asked, batches=batches))


def _with_step_time(heuristic: str, asked: Problem) -> None:
    scored(heuristic, asked)
    measured(asked, asked.batches[0])
