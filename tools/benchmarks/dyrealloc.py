"""An interval of train-dyrealloc, by the source of its scores, against as many batches of plain training.

Plain training has every element on. An interval is timed in the trainer itself, from just after one reallocation to
just after the next: every batch in between, what is recorded of them or scored besides, the scores, and the switching.
With `--interval 62 --scoring 32` it is what `--realloc-N 0.2 --imp-limit-test-batches 32` makes of RTE. Every B is
as if trained, which is the dearer case: while B = 0, half of what `training` computes for elements that are off is left
out.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from actions.callbacks import SeedEachBatch
from actions.console import note, say, set_log_level
from dataset.spec import DatasetSpec
from heterolora import saliency
from heterolora.saliency.from_training import TrainingGradients
from heterolora.search_space import SearchSpace
from model.checkpoint import BaseSource, Record
from model.reallocation.callback import Reallocate, ScoreSource, Settings
from model.reallocation.sources import DedicatedScores, TrainingScores
from model.task.classification import Classification
from model.task.fine_tuning import Splits
from model.task.optimization import Optimization
from tools import measure, subjects

HEURISTICS = ("grad_norm", "snip", "fisher")  # what `training` can score by
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2")
SPEC = DatasetSpec("random", "classification", ("sentence",), ("accuracy",), labels=("no", "yes"))
PLAIN, TRAINING, DEDICATED = "plain, all on", "training", "dedicated"


def add_options(parser: argparse.ArgumentParser) -> None:
    measure.add_options(parser)
    subjects.add_options(parser, hidden_size=256, layers=12)
    parser.add_argument("--interval", type=int, default=62, metavar="N", help="batches of an interval (default: 62)")
    parser.add_argument("--scoring", type=int, default=32, metavar="N", help="batches that score (default: 32)")
    parser.add_argument("--turn-on-percentile", type=float, default=0.25, metavar="P", help="p (default: 0.25)")
    parser.add_argument("--heuristic", default="grad_norm", choices=HEURISTICS, help="(default: grad_norm)")
    parser.add_argument("--projections", nargs="+", default=PROJECTIONS, metavar="NAME", help="LoRA (default: all six)")


def run(args: argparse.Namespace) -> None:
    set_log_level("warning")
    device = measure.device_of(args)
    base = subjects.base(args, device)
    tasks = {name: adapted_task(base, args) for name in (PLAIN, TRAINING, DEDICATED)}
    say(measure.heading(args, device, f"{args.interval} batches of training, {args.scoring} for the scores"))
    rounds: dict[str, list[float]] = {name: [] for name in tasks}
    names = list(tasks)
    with measure.one_thread():
        for turn in range(-1, args.rounds):  # the first is not counted
            for name in names[turn % 3 :] + names[: turn % 3]:
                seconds = interval(tasks[name], source_of(name, tasks[name].space, args), args, device)
                if turn >= 0:
                    rounds[name].append(seconds)
    table = measure.seconds_table(measure.Seconds({name: tuple(found) for name, found in rounds.items()}), PLAIN)
    space = tasks[TRAINING].space
    on = space.on()
    table.title = f"{len(space)} elements, {len(on)} on, the lowest in block {on[0].element.layer}"
    say(table)


def adapted_task(base: Any, args: argparse.Namespace) -> Classification:
    """A task of its own network, every element on."""
    network, space = subjects.adapted(base, subjects.lora(args.rank, args.projections), subjects.shortcuts(args.rank))
    record = Record("train-dyrealloc", {}, BaseSource("random"), "")
    return Classification(network, space, SPEC, Splits(("validation",), ("test",)), Optimization(), record)


def source_of(name: str, space: SearchSpace, args: argparse.Namespace) -> ScoreSource | None:
    """Where an interval's scores come from; None: nothing is scored."""
    if name == PLAIN:
        return None
    dedicated = DedicatedScores(args.heuristic, args.scoring, tolerance=0.01)
    if name == DEDICATED:
        return dedicated
    gradients = TrainingGradients(space, saliency.get(args.heuristic).score)
    return TrainingScores(gradients, args.scoring, dedicated)


def interval(task: Classification, source: ScoreSource | None, args: argparse.Namespace, device: torch.device) -> float:
    """Seconds of one interval, its reallocation included."""
    clock = Clock(args.interval, device)
    callbacks: list[pl.Callback] = [SeedEachBatch(0), clock]
    with tempfile.TemporaryDirectory() as folder:
        if source is not None:
            settings = Settings(args.interval, args.turn_on_percentile, "combined", warmup_epochs=0, seed=0)
            callbacks.insert(1, Reallocate(settings, source, Path(folder), note))
        trainer = pl.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            callbacks=callbacks,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        gc.collect()
        trainer.fit(task, datamodule=RandomRows(args))
    return clock.seconds


class RandomRows(pl.LightningDataModule):
    """The batches of one interval, and the one before which the next begins."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        rows = dict(subjects.batch(args, torch.device("cpu")))
        self.batches = [{**rows, "weight": torch.ones(args.rows)}] * (args.interval + 1)
        self.scoring_batch_count = len(self.batches)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.batches, batch_size=None)

    def train_batches_per_epoch(self, world: int) -> int:
        return len(self.batches)

    def scoring_batches(self, count: int, rank: int, world: int) -> Iterator[subjects.Batch]:
        return iter(self.batches[:count])


class Clock(pl.Callback):
    """Seconds from when batch 0 starts to when batch `end` does; of the processor, or, for a GPU, on the wall."""

    def __init__(self, end: int, device: torch.device) -> None:
        self.end, self.device, self.seconds = end, device, 0.0

    def on_train_batch_start(self, trainer: pl.Trainer, task: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in (0, self.end):
            self.seconds = self._now() - self.seconds

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()
