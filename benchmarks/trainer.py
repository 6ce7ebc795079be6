"""A training step of `train`, in Lightning's trainer with all callbacks, against a bare loop over the same batches.

Both train the same elements, with clipping and AdamW. The trainer adds callbacks, curves in CSV, the seed of each
batch, the learning rate schedule, the check of the loss and the progress bar.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from tools.cli import whole_number

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from actions.run.console import say, set_log_level
from actions.run.run_folder import Run
from actions.training.callbacks import Progress
from actions.training.checkpoints import RunCheckpoints
from actions.training.loggers import build_loggers
from actions.training.trainer import training_callbacks
from benchmarks import measure, subjects
from benchmarks.dyrealloc import Clock, adapted_task, loader
from heterolora.saliency.problem import Batch
from model.task.classification import Classification
from options.every import Options, changed
from options.ranges import at_least

BARE, TRAINER = "bare loop", "trainer"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(hidden_size=128, layers=4)
    parser.add_argument(
        "--interval", type=whole_number(at_least(1)), default=50, metavar="N", help="steps to time (default: 50)"
    )
    parser.set_defaults(projections=subjects.ALL)


def run(args: argparse.Namespace) -> None:
    set_log_level("warning")
    base = subjects.base(args)
    tasks = {name: adapted_task(base, args) for name in (BARE, TRAINER)}
    say(measure.heading(args, f"{args.interval} training steps of opt_lora, all elements on"))
    ways = {BARE: partial(bare, tasks[BARE], args), TRAINER: partial(trained, tasks[TRAINER], args)}
    seconds = measure.by_turns(ways, args.rounds, args.device, warm_up=1, seconds_of=lambda way: way())
    say(seconds.table(BARE, "all six projections"))
    both = zip(seconds.rounds[TRAINER], seconds.rounds[BARE], strict=True)
    added = measure.Spread.of([1000 * (trainer - loop) / args.interval for trainer, loop in both])
    say(f"the trainer adds {added.median:.2f} ms to a step ({added.low:.2f} to {added.high:.2f})")


def batches(args: argparse.Namespace) -> DataLoader[Batch]:
    """The batches that are timed, and one more."""
    row: dict[str, Any] = {name: tensor.cpu() for name, tensor in subjects.batch(args).items()}
    row |= {"weight": torch.ones(args.rows), "tokens": args.rows * args.tokens}
    return loader([row] * (args.interval + 1))


def bare(task: Classification, args: argparse.Namespace) -> float:
    """Seconds of the steps in a loop of its own."""
    task.network.train()
    optimizer = torch.optim.AdamW([p for p in task.network.parameters() if p.requires_grad], lr=1e-5)
    now = measure.clock(args.device)
    for number, batch in enumerate(batches(args)):
        if number == 0:
            start = now()
        if number == args.interval:
            break
        on_device = {name: value.to(args.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        task.loss(on_device).mean.backward()
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return now() - start


def trained(task: Classification, args: argparse.Namespace) -> float:
    """Seconds of the steps in the trainer, as `train` builds it, without validation and checkpoints."""
    clock = Clock(args.interval, measure.clock(args.device))
    options = changed(Options(), {"logger": "csv", "learning_rate": 5e-5})
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = RunCheckpoints(Run(Path(folder), None), "validation/loss", "min", options.run)
        *callbacks, _ = training_callbacks(options, checkpoints, (clock,))
        trainer = pl.Trainer(
            accelerator="gpu" if args.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            gradient_clip_val=1.0,
            log_every_n_steps=options.loop.log_every_n_steps,
            callbacks=[Progress(), *callbacks],
            logger=build_loggers(options, Path(folder)),
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(task, batches(args))
    return clock.seconds
