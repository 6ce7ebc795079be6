"""The folder of one run: its name and its files."""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from actions.console import is_first_process
from actions.options import Options, as_plain
from dataset import registry
from heterolora.files import write_text, write_toml

CHECKPOINTS, CONFIG, METRICS, PARAMETERS, LOGS = "checkpoints", "config.toml", "metrics.json", "parameters.json", "logs"


def open_run_folder(options: Options) -> Path:
    """Create the run folder and return it. Only the first process creates it; `RunCheckpoints` broadcasts its name.

    A resumed run continues in the folder of its checkpoint. Any other run gets a new folder; a number is appended to
    the name if that folder exists.
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
    """`--project`, or <model>_<task>_<dataset>_<time>. Under SLURM the time is the job id: a requeued job finds it."""
    when = os.environ.get("SLURM_JOB_ID") or time.strftime("%Y%m%d-%H%M%S")
    model, task = options.model.strip("/"), options.task or registry.get(options.dataset).task
    name = "_".join((model, task, options.dataset, when)).replace("/", "-")
    return options.run.project_dir / (options.run.project or name)


def write_json(path: Path, values: Any) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")


def write_config(folder: Path, action: str, options: Options) -> None:
    """Write the resolved options. `python -m main <action> --config config.toml` repeats the run."""
    write_toml(folder / CONFIG, {"action": action, **as_plain(options)})
