"""An interval of train-dyrealloc, by the source of its scores, against as many batches of plain training.

In plain training every element is on. An interval is timed in the trainer, from just after one reallocation to just
after the next: every batch, what is recorded of them or scored in addition, the scores, and the switching.
`--interval 62 --scoring 32` corresponds to `--realloc-N 0.2 --imp-limit-test-batches 32` on RTE. B is random, not 0,
which costs more: while B = 0, `training` skips half of its computation for elements that are off.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from tools.cli import real, whole_number

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from actions.run.console import note, say, set_log_level
from actions.training.callbacks import SeedEachBatch
from benchmarks import measure, subjects
from dataset.spec import DatasetSpec
from heterolora import saliency
from heterolora.choosing.ranks import Budget
from heterolora.common.checks import present
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.from_training import TrainingGradients
from heterolora.saliency.gradients import GradientHeuristic
from heterolora.saliency.problem import Batch
from heterolora.search import Plan
from model.checkpoint import BaseSource, ModelRecord
from model.reallocation.callback import Reallocate, ScoreSource
from model.reallocation.sources import DedicatedScores, TrainingScores
from model.task.classification import Classification
from model.task.fine_tuning import TaskParts
from options.optimization import Optimization
from options.ranges import at_least, share
from options.scoring import ScoringOptions

HEURISTICS = ("grad_norm", "snip", "fisher")  # what `training` can score by
SPEC = DatasetSpec("random", "classification", ("sentence",), ("accuracy",), labels=("no", "yes"))
PLAIN, TRAINING, DEDICATED = "plain, all on", "training", "dedicated"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(hidden_size=256, layers=12)
    add = parser.add_argument
    add(
        "--interval",
        type=whole_number(at_least(1)),
        default=62,
        metavar="N",
        help="batches of an interval (default: 62)",
    )
    add("--scoring", type=whole_number(at_least(1)), default=32, metavar="N", help="batches that score (default: 32)")
    add(
        "--turn-on-percentile",
        type=real(share),
        default=0.25,
        metavar="P",
        help="share of the elements (default: 0.25)",
    )
    add("--heuristic", default="grad_norm", choices=HEURISTICS, help="(default: grad_norm)")
    add("--projections", nargs="+", default=subjects.ALL, metavar="NAME", help="projections with LoRA (default: all)")


def run(args: argparse.Namespace) -> None:
    set_log_level("warning")
    base = subjects.base(args)
    tasks = {name: adapted_task(base, args) for name in (PLAIN, TRAINING, DEDICATED)}
    say(measure.heading(args, f"{args.interval} batches of training, {args.scoring} for the scores"))
    intervals = {name: partial(step_interval, task, name, args) for name, task in tasks.items()}
    seconds = measure.by_turns(
        intervals, args.rounds, args.device, warm_up=1, seconds_of=lambda step_interval: step_interval()
    )
    space = present(tasks[TRAINING].space)
    on = space.on()
    say(seconds.table(PLAIN, f"{len(space)} elements, {len(on)} on, the lowest in block {on[0].element.layer}"))


def adapted_task(base: Any, args: argparse.Namespace) -> Classification:
    """A task of its own network, every element on."""
    network, space = subjects.adapted(base, subjects.lora(args.rank, args.projections), subjects.shortcuts(args.rank))
    record = ModelRecord("train-dyrealloc", {}, BaseSource("random"), "")
    optimization, batches = Optimization(learning_rate=5e-5), lambda world: args.interval + 1
    return Classification(TaskParts(network, space, SPEC, ("validation",), ("test",), optimization, record, batches))


def source_of(name: str, space: SearchSpace, args: argparse.Namespace) -> ScoreSource | None:
    """The source of the scores; `None` for plain training."""
    if name == PLAIN:
        return None
    dedicated = DedicatedScores(ScoringOptions(args.heuristic), lambda rank, world: rows(args)[: args.scoring])
    if name == DEDICATED:
        return dedicated
    score = saliency.get(args.heuristic).score
    assert isinstance(score, GradientHeuristic)
    return TrainingScores(TrainingGradients(space, score), args.scoring, dedicated)


def step_interval(task: Classification, name: str, args: argparse.Namespace) -> float:
    """Seconds of one interval, its reallocation included."""
    clock = Clock(args.interval, measure.clock(args.device))
    callbacks: list[pl.Callback] = [SeedEachBatch(0), clock]
    with tempfile.TemporaryDirectory() as folder:
        if (source := source_of(name, present(task.space), args)) is not None:
            plan = Plan(Budget("share", args.turn_on_percentile), "fixed", mode="combined")
            callbacks.insert(1, Reallocate(plan, args.interval, 0, source, Path(folder), note))
        trainer = pl.Trainer(
            accelerator="gpu" if args.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(task, loader(rows(args)))
    return clock.seconds


def rows(args: argparse.Namespace) -> list[Batch]:
    """The batches of one interval, and the first of the next."""
    row = {name: tensor.cpu() for name, tensor in subjects.batch(args).items()}
    return [{**row, "weight": torch.ones(args.rows)}] * (args.interval + 1)


def loader(batches: list[Batch]) -> DataLoader[Batch]:
    """A loader of whole batches. A list is enough for it, though its type asks for a `Dataset`."""
    return DataLoader(cast(Dataset[Batch], batches), batch_size=None)


class Clock(pl.Callback):
    """Seconds from the start of batch 0 to the start of batch `end`."""

    def __init__(self, end: int, now: Callable[[], float]) -> None:
        self.end, self.now, self.seconds = end, now, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in (0, self.end):
            self.seconds = self.now() - self.seconds
