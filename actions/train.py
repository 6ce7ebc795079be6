"""`train`: fine-tune, keep the best and the last checkpoint, and measure the best."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from actions.checkpoints import RunCheckpoints
from actions.console import is_first_process, say
from actions.experiment import Experiment, build
from actions.resolve import Request
from actions.results import measure, save_metrics, show_parameters
from actions.run_folder import CHECKPOINTS, open_run_folder, write_config
from actions.trainer import build_trainer, check_devices, training_callbacks
from model.checkpoint import read_checkpoint, record_of


def run(request: Request) -> None:
    check_devices(request.options)
    experiment = build(request)
    options = experiment.options
    folder = open_run_folder(options)
    say(f"run folder: {folder}")
    show_parameters(experiment, folder)
    if is_first_process() and not options.resume_training:
        write_config(folder, request.action, options)
    checkpoints = RunCheckpoints(
        folder / CHECKPOINTS,
        experiment.task.monitor,
        experiment.task.monitor_mode,
        options.checkpoint_every_n_steps,
        requeue=options.auto_requeue,
    )
    callbacks = training_callbacks(options, experiment.task, checkpoints)
    trainer = build_trainer(options, experiment.task, folder, callbacks)
    fit(experiment, trainer)
    measured = checkpoints.best if checkpoints.best.is_file() else checkpoints.last
    take(experiment, measured)
    save_metrics(experiment, folder, measured, measure(experiment, trainer))


def take(experiment: Experiment, checkpoint: Path) -> None:
    contents = read_checkpoint(checkpoint)
    experiment.task.take(record_of(contents), contents["state_dict"])


def fit(experiment: Experiment, trainer: pl.Trainer) -> None:
    options = experiment.options
    resume_from = options.load if options.resume_training else None
    trainer.fit(experiment.task, datamodule=experiment.data, ckpt_path=resume_from, weights_only=True)
