"""`train`: fine-tune, keep the best and the last checkpoint, and measure the best."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl

from actions.checkpoints import RunCheckpoints
from actions.console import is_first_process, say
from actions.experiment import Experiment, build
from actions.export import ADAPTER, export_run
from actions.loggers import log_pictures
from actions.resolve import Request
from actions.results import measure, save_metrics, show_parameters
from actions.run_folder import CHECKPOINTS, open_run_folder, write_config
from actions.trainer import build_trainer, check_devices, training_callbacks
from model.checkpoint import read_checkpoint, record_of


def run(request: Request) -> None:
    experiment, folder = start(request)
    fit(experiment, folder)
    export_run(experiment, folder)
    log_pictures(experiment.task.trainer.loggers, (folder / ADAPTER).glob("*.png"))


def start(request: Request) -> tuple[Experiment, Path]:
    """The experiment and its run folder, with what is known before training."""
    check_devices(request.options)
    experiment = build(request)
    folder = open_run_folder(experiment.options)
    say(f"run folder: {folder}")
    show_parameters(experiment, folder)
    if is_first_process() and not experiment.options.resume_training:
        write_config(folder, request.action, experiment.options)
    return experiment, folder


def fit(experiment: Experiment, folder: Path, more: tuple[pl.Callback, ...] = ()) -> None:
    """Train, with `more` callbacks, and measure the best weights.

    Raises:
        UserError: a mistake that shows only while training.
    """
    options = experiment.options
    checkpoints = RunCheckpoints(
        folder / CHECKPOINTS,
        experiment.task.monitor,
        experiment.task.monitor_mode,
        options.checkpoint_every_n_steps,
        requeue=options.auto_requeue,
    )
    callbacks = training_callbacks(options, experiment.task, checkpoints, more)
    trainer = build_trainer(options, experiment.task, folder, callbacks, experiment.done)
    resume_from = options.load if options.resume_training else None
    trainer.fit(experiment.task, datamodule=experiment.data, ckpt_path=resume_from, weights_only=True)
    measured = checkpoints.best if checkpoints.best.is_file() else checkpoints.last
    take(experiment, measured)
    save_metrics(experiment, folder, measured, measure(experiment, trainer))


def take(experiment: Experiment, checkpoint: Path) -> None:
    contents = read_checkpoint(checkpoint)
    experiment.task.take(record_of(contents), contents["state_dict"])
