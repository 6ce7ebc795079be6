"""`--learning-rate auto`: short training runs choose the learning rate. `actions.training.rates` has the rules."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch

from actions.run.console import is_first_process, note, say
from actions.run.run_folder import record_trials
from actions.training.callbacks import CountOptimizerSteps, SeedEachBatch
from actions.training.experiment import Experiment
from actions.training.rates import Choice, Trial, chosen, lengths, promoted
from actions.training.trainer import build_trainer
from heterolora.common.checks import present
from heterolora.common.distributed import gather_lists
from heterolora.common.errors import UserError
from heterolora.saliency.problem import Batch, Loss
from model.lightning import connected
from model.sharding import put
from model.task.fine_tuning import FineTuning, task_of
from options.every import Options, as_plain, changed
from options.optimization import RATES, RATES_OF_PLAIN

_BATCHES = 64  # of the first validation split

# Index, loss, count, predicted class and class of a validation row. The classes are -1 for other tasks.
_Row = tuple[int, float, float, int, int]


def with_best_rate(experiment: Experiment, folder: Path, start: tuple[pl.Callback, ...] = ()) -> Experiment:
    """Return the experiment with the best learning rate, as if its number had been given.

    Each trial is a complete short run, with its own schedule. Then all weights are as before. The trials and the
    result are printed, and recorded in `run.json`. `start` are callbacks that set the weights at the start of a run.
    """
    options, task = experiment.options, experiment.task
    rates: tuple[float, ...] = RATES_OF_PLAIN if task.space is None else RATES
    rows = options.data.batch_size * options.loop.accumulate_grad_batches * options.devices.world
    rungs = lengths(experiment.steps, -(-experiment.batches // options.loop.accumulate_grad_batches), rows)
    before = {name: value.detach().cpu().clone() for name, value in _trained(task).items()}
    every: list[Trial] = []
    for steps in rungs:
        trials = [_trial(experiment, rate, steps, folder, before, start) for rate in rates]
        every += trials
        if not any(trial.finished for trial in trials):
            raise UserError("every trial of --learning-rate auto diverged", "check the data, or give --precision 32")
        rates = promoted(trials)
    choice = chosen(trials)
    if is_first_process():
        record_trials(folder, [trial.as_dict() for trial in every])
    say(f"learning rate: {choice.rate:g} ({_reason(choice, trials, experiment.steps)})")
    if all(trial.one_class for trial in trials if trial.finished):
        note("every trial predicts one class for all rows: the learning rate may not be the reason")
    return _prepared(experiment, changed(options, {"learning_rate": choice.rate}))


def _reason(choice: Choice, trials: list[Trial], whole: float) -> str:
    """Why the rate was taken, and what share of the run was compared."""
    rows, steps = len(trials[0].counts), trials[0].steps
    after = f"{steps:,} steps, the whole run" if steps == whole else f"{steps:,} of the run's {whole:,} steps"
    if choice.alike == (choice.rate,):
        return f"the best on {rows} validation rows after {after}"
    alike = " and ".join(f"{rate:g}" for rate in choice.alike)
    return f"the lowest of {alike}, which {rows} validation rows cannot tell apart after {after}"


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
    record = replace(experiment.task.record, options=as_plain(options))
    task = experiment.task.again(optimization=options.optimization, record=record)
    pl.seed_everything(options.seed, workers=True, verbose=False)
    return replace(experiment, options=options, task=task)


def _trial(
    experiment: Experiment,
    rate: float,
    steps: int,
    folder: Path,
    before: dict[str, torch.Tensor],
    start: tuple[pl.Callback, ...],
) -> Trial:
    """Train from the weights `before`, measure, print the result, and put the weights back."""
    options = _of_trial(experiment.options, rate, steps, experiment.steps)
    judge = _Judge(steps)
    callbacks = (CountOptimizerSteps(), SeedEachBatch(options.seed), *start, judge)
    prepared = _prepared(experiment, options)
    build_trainer(prepared, folder, callbacks).fit(prepared.task, datamodule=prepared.data)
    for name, parameter in _trained(experiment.task).items():
        put(parameter, before[name])
    trial = _of_rows(rate, steps, gather_lists(judge.rows))
    ends = ", one class for all rows" if trial.one_class else ""
    say(f"trial of learning rate {rate:g}, {steps} steps: validation loss {trial.loss:.4f}{ends}")
    return trial


def _of_rows(rate: float, steps: int, rows: list[_Row]) -> Trial:
    """The trial with these rows of all processes, which are in the same order for each trial."""
    _, totals, counts, predicted, true = np.array(sorted(rows), dtype=np.float64).reshape(-1, 5).T
    one_class = bool(np.isfinite(totals).all()) and len(set(predicted)) == 1 and len(set(true)) > 1
    return Trial(rate, steps, totals, counts, one_class)


class _Judge(pl.Callback):
    """Ends training after `steps` optimizer steps, or when it diverged, and measures the losses of validation rows.

    Losses are enough, and a validation would also compute the metrics, which may generate text.
    """

    def __init__(self, steps: int) -> None:
        self.steps, self.rows = steps, list[_Row]()  # of this process

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step >= self.steps or not math.isfinite(task_of(pl_module).global_loss):
            trainer.should_stop = True

    @torch.no_grad()
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = task_of(pl_module).eval()
        for batch in itertools.islice(connected(trainer).datamodule.val_dataloader()[0], _BATCHES):
            on_device = trainer.strategy.batch_to_device(batch)
            with task.uncompiled(), trainer.precision_plugin.forward_context():
                found = task.loss(on_device)  # also of a filler: a sharded base needs a pass of every process
            self.rows += _rows(task, on_device, found)
        task.train()


def _rows(task: FineTuning, batch: Batch, found: Loss) -> list[_Row]:
    """The rows of a batch, without fillers."""
    counts, _ = task.row_counts(batch, found)
    predicted = true = torch.full_like(batch["index"], -1)
    if task.spec.single_label:
        predicted, true = present(found.logits).argmax(-1), batch["labels"]
    columns = (batch["index"], present(found.each), counts, predicted, true)
    rows = zip(*(column.tolist() for column in columns), (batch["weight"] > 0).tolist(), strict=True)
    return [row[:-1] for row in rows if row[-1]]
