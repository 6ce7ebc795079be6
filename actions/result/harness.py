"""`--lm-eval`: measures a language model on tasks of EleutherAI's lm-evaluation-harness, the package lm_eval."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table

from actions.run.console import say
from actions.run.endings import explanation
from actions.training.experiment import Experiment
from heterolora.common.errors import UserError
from model.load import load_tokenizer

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

PREFIX = "lm_eval/"  # of the tasks in metrics.json


@dataclass(frozen=True)
class Harness:
    """The tasks to measure, and the harness's index of tasks."""

    tasks: Sequence[str]
    manager: TaskManager


def read_tasks(names: str) -> Harness:
    """The tasks that `--lm-eval` names: tasks, groups and YAML files, separated by commas. Reads no data.

    Raises UserError for a name that the harness does not know.
    """
    from lm_eval.tasks import TaskManager

    tasks = [name.strip() for name in names.split(",") if name.strip()]
    if not tasks:
        raise UserError("--lm-eval names no task", "give tasks separated by commas, such as hellaswag,arc_easy")
    named = [task for task in tasks if not Path(task).is_file()]
    manager = TaskManager(include_defaults=bool(named))  # the index of all tasks takes seconds
    known = manager.all_tasks
    for task in named:
        if task not in known:
            close = difflib.get_close_matches(task, known, n=1)
            advice = f"did you mean '{close[0]}'?" if close else "give a task of `lm_eval ls tasks`, or a YAML file"
            raise UserError(f"--lm-eval: '{task}' is neither a task nor a file", advice)
    return Harness(tasks, manager)


def evaluate(harness: Harness, experiment: Experiment, device: torch.device) -> dict[str, dict[str, float]]:
    """Measure the model as it is in memory, with its shortcuts. Returns `lm_eval/<task>` → name → value.

    Raises UserError if the data of a task cannot be read.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    task, size = experiment.task, experiment.options.data.batch_size
    tokenizer = load_tokenizer(task.record.base.name, task.network.config)
    network = task.network.to(device).eval()
    try:
        model = HFLM(pretrained=network, tokenizer=tokenizer, backend="causal", batch_size=size)
        found = simple_evaluate(
            model=model, tasks=list(harness.tasks), task_manager=harness.manager, log_samples=False,
            random_seed=experiment.options.seed,
        )  # fmt: skip
    except Exception as failure:  # the harness has no class of its own for a mistake in a task or in its data
        if explanation(failure) is not None:
            raise
        lines = str(failure).splitlines() or [type(failure).__name__]
        raise UserError(f"--lm-eval {','.join(harness.tasks)}: {lines[0]}", "check the task and its data") from failure
    metrics = {f"{PREFIX}{name}": _numbers(values) for name, values in found["results"].items()}
    say(_table(metrics))
    return metrics


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The harness names a metric `<metric>,<filter>`; the filter `none` is left out."""
    return {
        name.removesuffix(",none"): float(value) for name, value in values.items()
        if isinstance(value, int | float) and "," in name
    }  # fmt: skip


def _table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("task", "metric", "value", "standard error", title="lm-evaluation-harness")
    for task, values in metrics.items():
        for name, value in values.items():
            if "_stderr" not in name:
                error = values.get(name.replace(",", "_stderr,") if "," in name else f"{name}_stderr")
                shown = "" if error is None else f"{error:.4f}"
                table.add_row(task.removeprefix(PREFIX), name, f"{value:.4f}", shown)
    return table
