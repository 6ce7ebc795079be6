"""What a run found: printed as a table, and saved as JSON with everything needed to repeat it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table

from actions.console import is_first_process, say
from actions.experiment import Experiment
from actions.run_folder import METRICS, PARAMETERS, as_plain, versions, write_json
from model.parameters import render


def show_parameters(experiment: Experiment, folder: Path) -> None:
    say(render(experiment.parameters))
    if is_first_process():
        write_json(folder / PARAMETERS, experiment.parameters.as_dict())


def measure(experiment: Experiment, trainer: pl.Trainer) -> dict[str, dict[str, float]]:
    """Figures of the weights at hand by split: the validation splits', then the test splits'.

    Loggers get them as `final/<split>/<metric>`: they are of other weights than the end of a curve.
    """
    task, data = experiment.task, experiment.data
    loggers, trainer.loggers = trainer.loggers, []
    figures: dict[str, dict[str, float]] = {}
    if set(task.splits.validation) - set(task.splits.test):
        figures |= validate(experiment, trainer)
    trainer.test(task, datamodule=data, verbose=False)
    figures |= _by_split(trainer, task.splits.test)
    for split, official in task.official.items():
        figures[split] |= {f"official/{name}": value for name, value in official.items()}
    trainer.loggers = loggers
    for logger in loggers:
        final = {f"final/{split}/{name}": value for split, row in figures.items() for name, value in row.items()}
        logger.log_metrics(final, step=trainer.global_step)
        logger.save()
    return figures


def validate(experiment: Experiment, trainer: pl.Trainer) -> dict[str, dict[str, float]]:
    """Figures of the weights at hand on the validation splits."""
    trainer.validate(experiment.task, datamodule=experiment.data, verbose=False)
    return _by_split(trainer, experiment.task.splits.validation)


def save_metrics(
    experiment: Experiment, folder: Path, checkpoint: Path | None, figures: dict[str, dict[str, float]]
) -> None:
    """Print the figures and write `metrics.json`."""
    say(_table(figures))
    if is_first_process():
        values = {
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "metrics": {split: {name: _for_json(v) for name, v in row.items()} for split, row in figures.items()},
            "options": as_plain(experiment.options),
            "versions": versions(),
        }
        write_json(folder / METRICS, values)
    say(f"results: {folder}")


def _by_split(trainer: pl.Trainer, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        split: {name.removeprefix(f"{split}/"): value for name, value in logged.items() if name.startswith(f"{split}/")}
        for split in splits
    }


def _for_json(value: Any) -> float | None:
    """JSON has no NaN (a correlation of constant predictions)."""
    return None if not math.isfinite(value) else float(value)


def _table(figures: dict[str, dict[str, float]]) -> Table:
    table = Table(title="Metrics")
    table.add_column("metric")
    for split in figures:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for row in figures.values() for name in row):
        table.add_row(name, *(f"{row[name]:.4f}" if name in row else "" for row in figures.values()))
    return table
