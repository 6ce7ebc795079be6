"""The metrics of a run: printed as a table, and saved as JSON with what is needed to repeat the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from rich.table import Table

from actions.result.classes import class_table
from actions.run.console import is_first_process, say
from actions.run.run_folder import METRICS, PARAMETERS, write_json
from actions.training.checkpoints import Validated, by_split
from actions.training.experiment import Experiment
from actions.training.limits import measures_validation
from actions.training.resources import Resources
from heterolora import __version__
from heterolora.common.distributed import gather_lists
from heterolora.pictures.drawing import save
from heterolora.pictures.of_run import CONFUSION_PICTURE, of_classes
from model.lightning import connected
from model.parameters import count, render
from model.task.fine_tuning import FineTuning
from model.task.rows import write_rows
from options.every import as_plain

Metrics = dict[str, dict[str, float]]  # split -> name -> value

_PACKAGES = ("torch", "pytorch-lightning", "transformers", "datasets", "evaluate", "torchmetrics", "safetensors")


def show_parameters(experiment: Experiment, folder: Path) -> None:
    """Print and write the parameter table. A resumed run keeps the table of its start, before any reallocation."""
    parameters = count(experiment.task.network, experiment.task.space)
    say(render(parameters))
    if is_first_process() and not (experiment.resumed and (folder / PARAMETERS).is_file()):
        write_json(folder / PARAMETERS, parameters.as_dict())


def measure(
    experiment: Experiment,
    trainer: pl.Trainer,
    folder: Path,
    checkpoint: Path | None,
    more: Sequence[Callable[[], Metrics]] = (),
    validated: Validated | None = None,
) -> Metrics:
    """Measure the current weights on all splits, print the metrics and write `metrics.json`. Returns the metrics.

    The metrics are logged as `final/<split>/<metric>`, because these weights may not be those of the end of a curve.
    `checkpoint` is the file of the weights. `more` are further measurements, which print their own tables. `validated`
    is what a validation has found of the same weights: its splits are not measured again.
    """
    task = experiment.task
    loggers, trainer.loggers = trainer.loggers, []
    task.keeps_rows, task.rows, task.confusion = experiment.options.run.row_results, [], {}
    metrics: Metrics = {}
    if measures_validation(experiment.data):
        known = None if validated is None else _known(task, validated, task.validation_names)
        metrics |= validate(experiment, trainer) if known is None else known
    if validated is not None and _has_tests(validated, experiment):
        metrics |= _known(task, validated, task.test_names)
        task.predicted = validated.predicted
    else:
        trainer.test(task, datamodule=experiment.data, verbose=False)
        metrics |= by_split(trainer, task.test_names)
    for split, official in task.official().items():
        metrics[split] |= {f"official/{name}": value for name, value in official.items()}
    say(_table(metrics))
    for split in list(task.confusion)[-1:]:
        say(class_table(split, task.confusion[split], task.spec.labels))
    for further in more:
        metrics |= further()
    trainer.loggers = loggers
    for logger in loggers:
        final = {f"final/{split}/{name}": value for split, row in metrics.items() for name, value in row.items()}
        logger.log_metrics(final, step=trainer.global_step)
        logger.save()
    rows = gather_lists(task.rows)
    if is_first_process():
        if task.keeps_rows:
            write_rows(folder, rows)
        finite = {  # JSON has no NaN, such as the correlation of constant predictions
            split: {name: value if math.isfinite(value) else None for name, value in row.items()}
            for split, row in metrics.items()
        }
        values = {
            "action": task.record.action,
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "metrics": finite,
            **_classes(task),
            "resources": _resources(trainer),
            "rows": _rows(experiment),
            "options": as_plain(experiment.options),
            "versions": {"heterolora": __version__, **{package: version(package) for package in _PACKAGES}},
        }
        write_json(folder / METRICS, values)
        if task.confusion and task.spec.single_label:
            save(folder / CONFUSION_PICTURE, *of_classes(task.spec.labels, task.confusion))
    say(f"results: {folder}")
    return metrics


def _rows(experiment: Experiment) -> dict[str, int]:
    """The rows of each split. A stream has no number of rows."""
    splits = experiment.data.splits
    return {name: size for name, size in splits.sizes.items() if splits.stream is None or name != "training"}


def _classes(task: FineTuning) -> dict[str, Any]:
    return {"classes": {"labels": task.spec.labels, "confusion": task.confusion}} if task.confusion else {}


def _resources(trainer: pl.Trainer) -> dict[str, float | int | None]:
    """What training took; empty if the trainer did not train."""
    return next(
        (callback.as_dict() for callback in connected(trainer).callbacks if isinstance(callback, Resources)), {}
    )


def validate(experiment: Experiment, trainer: pl.Trainer) -> Metrics:
    """Metrics of the current weights on the validation splits."""
    trainer.validate(experiment.task, datamodule=experiment.data, verbose=False)
    return by_split(trainer, experiment.task.validation_names)


def _known(task: FineTuning, validated: Validated, splits: Sequence[str]) -> Metrics:
    task.confusion |= {split: validated.confusion[split] for split in splits if split in validated.confusion}
    task.rows = [row for row in task.rows if row.split not in splits]
    task.rows += [row for row in validated.rows if row.split in splits]
    return {split: dict(validated.metrics[split]) for split in splits}


def _has_tests(validated: Validated, experiment: Experiment) -> bool:
    """Whether the test splits are validation splits, of which as many batches were measured."""
    loop = experiment.options.loop
    alike = str(loop.limit_val_batches) == str(loop.limit_test_batches)  # 1 is one batch, 1.0 all
    return alike and set(experiment.task.test_names) <= validated.metrics.keys()


def _table(metrics: Metrics) -> Table:
    table = Table(title="Metrics")
    table.add_column("metric")
    for split in metrics:
        table.add_column(split, justify="right")
    for name in dict.fromkeys(name for row in metrics.values() for name in row):
        table.add_row(name, *(f"{row[name]:.4f}" if name in row else "" for row in metrics.values()))
    return table
