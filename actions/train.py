"""`train`: fine-tune, keep the best and the last checkpoint, and measure the best."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
from transformers import PreTrainedModel

from actions.command.request import Request
from actions.result.export import export_run
from actions.result.results import Metrics, measure, show_parameters
from actions.result.samples import write_samples
from actions.run.console import is_first_process, note, say
from actions.run.requeue import requeued_if_stopped
from actions.run.run_folder import ADAPTER, PARAMETERS, Run, open_run, write_config, write_json
from actions.training.baseline import nothing_learnt
from actions.training.checkpoints import RunCheckpoints
from actions.training.experiment import Experiment, build
from actions.training.learning_rate import with_best_rate
from actions.training.loggers import log_pictures
from actions.training.scoring import scoring_batches
from actions.training.trackers import check_login
from actions.training.trainer import build_trainer, check_devices, training_callbacks
from actions.training.training_state import loading_from
from model.checkpoint import read_checkpoint
from model.load import load_config
from model.parameters import count
from model.skeleton import skeleton
from model.task.frozen_prefix import FrozenPrefix
from model.task.optimization import recipe
from model.task.row_cache import RowCache
from model.task.start import StartElements
from options.actions import TEST
from options.optimization import AUTO
from options.ranges import bytes_of


def run(request: Request) -> Path:
    """Train, and measure and export the best weights. Returns the run folder."""
    check_devices(request.options)
    check_login(request.options.run.logger)
    with requeued_if_stopped(request.options.run), open_run(request) as opened:
        experiment = start(request, opened.folder)
        metrics = fit(experiment, opened)
        finish(experiment, opened.folder, metrics)
    return opened.folder


def start(request: Request, folder: Path) -> Experiment:
    """Build the experiment, and write the options and the parameter table into the run folder."""
    if request.adapted is None and request.action != TEST:
        say(_trained_completely(skeleton(load_config(request.base.name, request.spec), request.spec.task)))
    experiment = build(request)
    say(f"run folder: {folder}")
    show_parameters(experiment, folder)
    if request.action != TEST:
        if experiment.options.optimization.learning_rate == AUTO:
            experiment = with_best_rate(experiment, folder, _starting(experiment))
        say(recipe(experiment.options.optimization, experiment.options.loop.gradient_clip_val))
    if is_first_process():
        write_config(folder, request.action, experiment.options, experiment.task.record.configs)
    return experiment


def _trained_completely(network: PreTrainedModel) -> str:
    weights = sum(parameter.numel() for parameter in network.parameters())
    count = f"{weights / 1e6:,.1f}M" if weights >= 1e6 else f"{weights:,}"
    return f"full fine-tuning of {count} weights (for LoRA: --model lora)"


def fit(
    experiment: Experiment,
    run: Run,
    more: Sequence[pl.Callback] = (),
    may_be_best: Callable[[], bool] = lambda: True,
) -> Metrics:
    """Train, with `more` callbacks, and measure the best weights: of the validations in which they may be the best."""
    task, resumed, folder = experiment.task, experiment.resumed, run.folder
    task.frozen_prefix, task.keeps_rows = _frozen_prefix(experiment), experiment.options.run.row_results
    checkpoints = RunCheckpoints(run, task.monitor, task.monitor_mode, experiment.options.run, may_be_best)
    callbacks = training_callbacks(experiment.options, checkpoints, (*_starting(experiment), *more))
    trainer = build_trainer(experiment, folder, callbacks)
    resume_from = resumed.path if resumed else None
    with loading_from(resume_from):
        trainer.fit(task, datamodule=experiment.data, ckpt_path=resume_from, weights_only=True)
    has_best = experiment.options.run.measured == "best" and checkpoints.best.is_file()
    if experiment.options.run.measured == "best" and not has_best:
        when = "" if may_be_best() else " within the budget"
        note(f"no validation{when} had a finite {task.monitor}: last.ckpt is measured")
    measured = checkpoints.best if has_best else checkpoints.last
    if measured not in checkpoints.in_memory:
        task.take(read_checkpoint(measured))
    with exported(experiment, folder):
        return measure(experiment, trainer, folder, measured, validated=checkpoints.validated.get(measured))


@contextmanager
def exported(experiment: Experiment, folder: Path) -> Iterator[None]:
    """Export the result if the block fails, so that training is not lost with what comes after it."""
    try:
        yield
    except Exception:
        export_run(experiment, folder)
        raise


def finish(experiment: Experiment, folder: Path, metrics: Metrics) -> None:
    """Show samples, export the result, count its parameters, log its pictures, and say if it has learnt nothing."""
    if is_first_process():  # a search began with other elements on
        write_json(folder / PARAMETERS, count(experiment.task.network, experiment.task.space).as_dict())
    write_samples(experiment, folder)
    export_run(experiment, folder)
    log_pictures(experiment.task.trainer.loggers, (folder / ADAPTER).glob("*.png"))
    split = experiment.data.validation_names[0]
    if (sentence := nothing_learnt(experiment.data, split, metrics[split])) is not None:
        note(sentence)


def _starting(experiment: Experiment) -> tuple[pl.Callback, ...]:
    """The callback of `--lora-init`, for a new run. A resumed run has A from its checkpoint."""
    options = experiment.options
    if options.lora_init == "kaiming" or experiment.resumed is not None:
        return ()
    batches = functools.partial(scoring_batches, experiment.data, options.scoring.imp_limit_test_batches)
    return (StartElements(options.lora_init, options.seed, batches, note),)


def _frozen_prefix(experiment: Experiment) -> FrozenPrefix | None:
    """The cache of --cache-frozen-prefix. The processes of a machine share its limit equally."""
    options, task = experiment.options, experiment.task
    if not options.cache_frozen_prefix or task.space is None:
        return None

    def when_full(rows: int) -> None:
        note(f"--cache-limit {options.cache_limit} is full with {rows:,} rows: others are computed in every epoch")

    limit = bytes_of(options.cache_limit) // options.devices.num_devices
    return FrozenPrefix(task.network, task.space, RowCache(limit, options.cache_folder, when_full), note)
