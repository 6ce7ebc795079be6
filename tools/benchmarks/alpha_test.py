"""alpha_test: starting again where an element sits, against a whole evaluation for every question.

The elements are LoRA on q and v and all four shortcuts. Two cases: nearly every element is dispensable, or those of
the lowest blocks are not. Three ways, with the same answers: `bisection` evaluates everything for each question of a
bisection over 0, 0.1, …, 1.0; `zero first` does so too, but begins with α = 0; `restart` is the program's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from rich.table import Table
from torch.nn import functional as F

from actions.console import say
from heterolora.errors import UserError
from heterolora.low_rank import LowRank
from heterolora.saliency.heuristics.alpha_test import STEPS, alpha_test
from heterolora.saliency.problem import Batch, Loss, Metric, Problem
from heterolora.search_space import SearchSpace
from tools import measure, subjects

CASES = {"most elements dispensable": 0.0, "about a quarter not, in the lowest blocks": 0.5}  # share of the blocks


def add_options(parser: argparse.ArgumentParser) -> None:
    measure.add_options(parser, rounds=3)
    subjects.add_options(parser, hidden_size=64, layers=12, rows=8, tokens=8, rank=4)
    parser.add_argument("--batches", type=int, default=3, metavar="N", help="scoring batches (default: 3)")


def run(args: argparse.Namespace) -> None:
    device = measure.device_of(args)
    base = subjects.base(args, device)
    for title, share in CASES.items():
        lora, shortcuts = subjects.lora(args.rank, ("q_proj", "v_proj")), subjects.shortcuts(args.rank)
        network, space = subjects.adapted(base, lora, shortcuts)
        _matter_below(space, round(share * args.layers))
        problem = _problem(network.eval(), space, args, device)
        ways: dict[str, Callable[[], list[float]]] = {
            "restart": lambda problem=problem: alpha_test(problem),
            "bisection": lambda problem=problem: _plain(problem, zero_first=False),
            "zero first": lambda problem=problem: _plain(problem, zero_first=True),
        }
        counts = {name: _counted(way, space) for name, way in ways.items()}
        answers = [found for found, _ in counts.values()]
        if any(found != answers[0] for found in answers):
            raise UserError("the three ways differ in their answers", "expected the same scores: this is a bug")
        on = sum(score > 0 for score in answers[0])
        say(measure.heading(args, device, f"alpha_test, {title}: {on} of {len(space)} elements score above 0"))
        runs = Table("way", "block evaluations", "times those of restart")
        for name, (_, count) in counts.items():
            runs.add_row(name, f"{count:,}", f"{count / counts['restart'][1]:.2f}")
        say(runs)
        say(measure.seconds_table(measure.by_turns(ways, args.rounds, device, warm_up=0), "restart"))


def _matter_below(space: SearchSpace, blocks: int) -> None:
    """Elements of the first `blocks` blocks change much, all others next to nothing."""
    with torch.no_grad():
        for low_rank in space:
            low_rank.B.mul_(100.0 if low_rank.element.layer < blocks else 1e-2)


def _problem(network: torch.nn.Module, space: SearchSpace, args: argparse.Namespace, device: torch.device) -> Problem:
    """Batches whose labels are what the network says, but for a fifth."""
    generator = torch.Generator().manual_seed(1)
    batches: list[Batch] = []
    for _ in range(args.batches):
        ids = torch.randint(3, 1000, (args.rows, args.tokens), generator=generator).to(device)
        with torch.no_grad():
            says = network(input_ids=ids).logits.argmax(-1)
        wrong = (torch.rand(args.rows, generator=generator) < 0.2).to(device)
        batches.append({"input_ids": ids, "labels": torch.where(wrong, 1 - says, says)})

    def evaluate(batch: Batch) -> Loss:
        logits = network(input_ids=batch["input_ids"]).logits
        total = F.cross_entropy(logits, batch["labels"], reduction="sum")
        return Loss(total, torch.tensor(len(logits)), logits)

    return Problem(network, space, evaluate, batches, Metric("accuracy"))


@torch.no_grad()
def _plain(problem: Problem, zero_first: bool) -> list[float]:
    def accuracy() -> float:
        right = [(problem.evaluate(batch).logits.argmax(-1) == batch["labels"]).float() for batch in problem.batches]
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
