"""The folder of one run: its name, and files that are written whole or not at all."""

from __future__ import annotations

import itertools
import json
import os
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import toml

from actions.console import is_first_process
from actions.options import Options
from dataset import registry
from heterolora.files import whole

CHECKPOINTS, CONFIG, METRICS, PARAMETERS, LOGS = "checkpoints", "config.toml", "metrics.json", "parameters.json", "logs"

_PACKAGES = ("torch", "pytorch-lightning", "transformers", "datasets", "evaluate", "torchmetrics", "safetensors")


def open_run_folder(options: Options) -> Path:
    """Makes the run's folder and returns it. Only the first process makes one; the others are told later.

    A resumed run goes on in its checkpoint's own folder; any other one gets a folder of its own, with a number behind
    its name where that exists already.
    """
    if options.resume_training:
        return Path(options.load).resolve().parent.parent
    folder = named_folder(options)
    if not is_first_process():
        return folder
    for number in itertools.count(1):
        numbered = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            numbered.mkdir(parents=True)
        except FileExistsError:
            continue
        return numbered


def named_folder(options: Options) -> Path:
    """`--project`, or <model>_<task>_<dataset>_<time>; under SLURM the job id, so that a requeued job finds it."""
    when = os.environ.get("SLURM_JOB_ID") or time.strftime("%Y%m%d-%H%M%S")
    model, task = options.model.strip("/"), options.task or registry.get(options.dataset).task
    name = "_".join((model, task, options.dataset, when)).replace("/", "-")
    return options.project_dir / (options.project or name)


def write_text(path: Path, text: str) -> None:
    with whole(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def as_plain(options: Options) -> dict[str, Any]:
    """The options as TOML values; those that are `None` are left out."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {k: str(v) if isinstance(v, Path) else v for k, v in values.items() if v is not None and k != "config"}


def write_config(folder: Path, action: str, options: Options) -> None:
    """The resolved options: `python -m main <action> --config config.toml` repeats the run."""
    head = f"# python -m main {action} --config {CONFIG}\n"
    write_text(folder / CONFIG, head + toml.dumps(as_plain(options)))


def versions() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}
