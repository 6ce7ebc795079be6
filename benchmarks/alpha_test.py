"""alpha_test: evaluation that restarts at the block of an element, against evaluation of the whole model.

The elements are LoRA on q and v and all four shortcuts. Two cases: nearly every element is dispensable, or those of
the lowest blocks are not. `restart` is the program's way. `zero first` evaluates the whole model for each question and
gives the same scores. `bisection` does not begin with α = 0 but bisects over 0, 0.1, …, 1.0; its scores may differ if
the metric holds at 0 and not at a larger α.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from tools.cli import whole_number

import torch
from rich.table import Table
from torch.nn import functional as F

from actions.run.console import say
from benchmarks import measure, subjects
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.heuristics.alpha_test import STEPS, alpha_test
from heterolora.saliency.problem import Batch, Loss, Metric, Problem
from options.ranges import at_least

CASES = {"most elements dispensable": 0.0, "about a quarter not, in the lowest blocks": 0.5}  # share of the blocks


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=3, hidden_size=64, layers=12, rows=8, tokens=8, rank=4)
    parser.add_argument(
        "--batches", type=whole_number(at_least(1)), default=3, metavar="N", help="scoring batches (default: 3)"
    )


def run(args: argparse.Namespace) -> None:
    base = subjects.base(args)
    for title, share in CASES.items():
        lora, shortcuts = subjects.lora(args.rank, subjects.QV), subjects.shortcuts(args.rank)
        network, space = subjects.adapted(base, lora, shortcuts)
        _make_matter(space, round(share * args.layers))
        problem = _problem(network.eval(), space, args)
        ways: dict[str, Callable[[], list[float]]] = {
            "restart": partial(alpha_test, problem),
            "bisection": partial(_plain, problem, zero_first=False),
            "zero first": partial(_plain, problem, zero_first=True),
        }
        found, counts = zip(*(_counted(way, space) for way in ways.values()), strict=True)
        scores, by_bisection, zero_first = found
        if scores != zero_first:
            raise UserError("restart and zero first differ in their scores", "expected the same scores: this is a bug")
        on = sum(score > 0 for score in scores)
        say(measure.heading(args, f"alpha_test, {title}: {on} of {len(space)} elements score above 0"))
        table = Table("way", "block evaluations", "times those of restart")
        for name, count in zip(ways, counts, strict=True):
            table.add_row(name, f"{count:,}", f"{count / counts[0]:.2f}")
        say(table)
        if different := sum(a != b for a, b in zip(scores, by_bisection, strict=True)):
            say(f"bisection gives {different} other scores: the metric does not fall steadily with α")
        say(measure.by_turns(ways, args.rounds, args.device, warm_up=0).table("restart"))


def _make_matter(space: SearchSpace, blocks: int) -> None:
    """Elements of the first `blocks` blocks change much, all others almost nothing."""
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.mul_(100.0 if low_rank.element.layer < blocks else 1e-2)


def _problem(network: torch.nn.Module, space: SearchSpace, args: argparse.Namespace) -> Problem:
    """Batches whose labels are the network's own predictions, except for a fifth of them."""
    generator = torch.Generator().manual_seed(1)
    batches: list[Batch] = []
    for _ in range(args.batches):
        ids = torch.randint(3, 1000, (args.rows, args.tokens), generator=generator).to(args.device)
        with torch.no_grad():
            predicted = network(input_ids=ids).logits.argmax(-1)
        wrong = (torch.rand(args.rows, generator=generator) < 0.2).to(args.device)
        batches.append({"input_ids": ids, "labels": torch.where(wrong, 1 - predicted, predicted)})

    def evaluate(batch: Batch) -> Loss:
        logits = network(input_ids=batch["input_ids"]).logits
        total = F.cross_entropy(logits, batch["labels"], reduction="sum")
        return Loss(total, torch.tensor(len(logits)), logits)

    return Problem(network, space, evaluate, batches, Metric("accuracy"))


@torch.no_grad()
def _plain(problem: Problem, zero_first: bool) -> list[float]:
    def accuracy() -> float:
        right = [
            (present(problem.evaluate(batch).logits).argmax(-1) == batch["labels"]).float() for batch in problem.batches
        ]
        return float(torch.cat(right).double().mean())

    least = (1 - problem.metric.tolerance) * accuracy()

    def holds(low_rank: LowRank, step: int) -> bool:
        low_rank.importance = step / STEPS
        found = accuracy()
        low_rank.importance = 1.0
        return found >= least

    scores = []
    for low_rank in problem.space:
        low, high = 0, STEPS
        if zero_first:
            low, high = (0, 0) if holds(low_rank, 0) else (1, STEPS)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(low_rank, middle) else (middle + 1, high)
        scores.append(high / STEPS)
    return scores


def _counted(way: Callable[[], list[float]], space: SearchSpace) -> tuple[list[float], int]:
    """The scores, and how often a block ran."""
    ran: list[int] = []
    hooks = [block.register_forward_hook(lambda *_: ran.append(1)) for block in space.blocks]
    scores = way()
    for hook in hooks:
        hook.remove()
    return scores, len(ran)
