"""`--learning-rate auto`: short training runs choose the learning rate, by successive halving."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch

from actions.run.console import is_first_process, say
from actions.run.run_folder import record_trials
from actions.training.callbacks import CountOptimizerSteps, SeedEachBatch
from actions.training.experiment import Experiment
from actions.training.halving import promoted, shares
from actions.training.trainer import build_trainer
from heterolora.common.distributed import sum_numbers_over_ranks
from heterolora.common.errors import UserError
from model.sharding import put
from model.task.fine_tuning import FineTuning
from options.every import Options, as_plain, changed
from options.optimization import RATES, RATES_OF_PLAIN

_SHARE, _FEWEST = 0.2, 100  # the run that trials are parts of: a share of the whole run, and at least so many steps
_BATCHES = 32  # of the first validation split


def with_best_rate(experiment: Experiment, folder: Path, start: tuple[pl.Callback, ...] = ()) -> Experiment:
    """Returns the experiment with the best learning rate, as if its number had been given.

    Each trial is a complete short run, with its own schedule. Then all weights are as before. The trials and the
    result are printed, and recorded in `run.json`. `start` are callbacks that set the weights at the start of a run.
    """
    task, whole = experiment.task, experiment.steps
    rates = RATES_OF_PLAIN if task.space is None else RATES
    before = {name: value.detach().cpu().clone() for name, value in _trained(task).items()}
    longest = min(whole, max(_SHARE * whole, _FEWEST))
    trials: list[dict[str, float | None]] = []
    for share in shares(len(rates))[:-1]:
        losses = {}
        for rate in rates:
            steps = max(1, round(share * longest))
            options = _of_trial(experiment.options, rate, steps, whole)
            losses[rate] = _trial(replace(experiment, options=options), folder, start)
            for name, parameter in _trained(task).items():
                put(parameter, before[name])
            loss = losses[rate] if math.isfinite(losses[rate]) else None  # None: it diverged
            trials.append({"learning_rate": rate, "steps": steps, "loss": loss})
            say(f"trial of learning rate {rate:g}, {steps} steps: validation loss {losses[rate]:.4f}")
        rates = promoted(losses, higher_is_better=False)
        if not rates:
            raise UserError("every trial of --learning-rate auto diverged", "check the data, or give --precision 32")
    if is_first_process():
        record_trials(folder, trials)
    say(f"learning rate: {rates[0]:g}")
    return _prepared(experiment, changed(experiment.options, {"learning_rate": rates[0]}))


def _trained(task: FineTuning) -> dict[str, torch.Tensor]:
    weights = dict(task.network.named_parameters(remove_duplicate=False))
    return {name: weights[name] for name in task.trained}


def _of_trial(options: Options, rate: float, steps: int, whole: float) -> Options:
    """The options of a run of `steps` steps with a warm-up as long as that of the whole run, in proportion."""
    asked = options.optimization.warmup_steps
    warmup = asked if isinstance(asked, float) else int(asked * steps / whole)
    values = {"learning_rate": rate, "max_steps": steps, "warmup_steps": warmup, "stop_after": None}
    return changed(options, values | {"limit_val_batches": 0, "val_check_interval": 1.0, "logger": "none"})


def _prepared(experiment: Experiment, options: Options) -> Experiment:
    """The experiment with other options, in the random state that it was built with."""
    task = experiment.task
    task.optimization, task.record = options.optimization, replace(task.record, options=as_plain(options))
    pl.seed_everything(options.seed, workers=True, verbose=False)
    return replace(experiment, options=options)


def _trial(experiment: Experiment, folder: Path, start: tuple[pl.Callback, ...]) -> float:
    """Train, and return the validation loss."""
    options = experiment.options
    judge = _Judge(options.optimization.max_steps)
    callbacks = (CountOptimizerSteps(), SeedEachBatch(options.seed), *start, judge)
    trainer = build_trainer(_prepared(experiment, options), folder, callbacks)
    trainer.fit(experiment.task, datamodule=experiment.data)
    return judge.loss


class _Judge(pl.Callback):
    """Ends training after `steps` optimizer steps, or when it diverged, and measures the validation loss.

    A loss is enough, and a validation would also compute the metrics, which may generate text.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.loss = steps, math.nan

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: FineTuning, *_: object) -> None:
        if trainer.global_step >= self.steps or not math.isfinite(pl_module.global_loss):
            trainer.should_stop = True

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        total, count = 0.0, 0
        pl_module.eval()
        for batch in itertools.islice(trainer.datamodule.val_dataloader()[0], _BATCHES):
            on_device = trainer.strategy.batch_to_device(batch)
            with pl_module.uncompiled(), trainer.precision_plugin.forward_context():
                found = pl_module.loss(on_device)  # also of a filler: a sharded base needs a pass of every process
            if bool((on_device["weight"] > 0).any()):  # a process without rows of the last batch has a filler row
                total, count = total + float(found.total), count + int(found.count)
        pl_module.train()
        total, count = sum_numbers_over_ranks([total, count], pl_module.device)
        self.loss = total / count
