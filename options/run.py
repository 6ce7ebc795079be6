"""The options of the run folder, logs and checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from heterolora.common.checks import Condition
from options.actions import IMP_TEST, PREDICT, TEST, TRAINING, WITH_RUN
from options.declare import option
from options.predicting import file_of
from options.ranges import at_least, count_or_share

_folder_name = Condition(lambda value: Path(value).name not in ("", ".."), "a name, such as rte-rank8")


def _names_no_new_run(run: Mapping[str, Any]) -> str | None:
    if run["resume_training"]:
        return "with --resume-training"
    return "without --project" if run["project"] is None else None


def _replaces_nothing(run: Mapping[str, Any]) -> str | None:
    if run["action"] != PREDICT:
        return _names_no_new_run(run)
    return "without a file as --output" if file_of(run["output"]) is None else None


@dataclass(frozen=True)
class RunOptions:
    """The run folder, logs and checkpoints."""

    # fmt: off
    config: Path | None = option(None, "TOML file of options; the command line takes precedence",
        resume="start",
        brief="TOML file of options")
    project_dir: Path = option(Path("runs"), "folder of all runs", actions=WITH_RUN, resume="start")
    project: str | None = option(None, "name of this run's folder; by default <model>_<task>_<dataset>_<time>",
        _folder_name, actions=WITH_RUN, resume="start",
        brief="name of the run, which is a folder in runs/")
    overwrite: bool = option(False, "replace what is there: the run that --project names, or the --output of predict",
        actions=(*WITH_RUN, PREDICT), resume="start", idle=_replaces_nothing)
    project_suffix: bool = option(False, "append a number to --project if that run is there", actions=WITH_RUN,
        resume="start",
        idle=_names_no_new_run)
    measured: Literal["best", "last"] = option("best",
        "checkpoint that is measured and exported at the end of training", actions=TRAINING, resume="free")
    row_results: bool = option(False, "also write rows.csv: loss and prediction of each row of the measured splits",
        actions=(*TRAINING, TEST), resume="free")
    lm_eval: str | None = option(None, "also measure a language model on these tasks of lm-evaluation-harness: names "
        "or YAML files, separated by commas", actions=(TEST,), resume="start")
    logger: Literal["tensorboard", "csv", "wandb", "mlflow", "trackio", "none"] = option("tensorboard",
        "where curves are logged", actions=(*TRAINING, IMP_TEST), resume="free")
    log_level: Literal["debug", "info", "warning", "error"] = option("warning",
        "how much is printed; debug also shows tracebacks", resume="free")
    checkpoint_every_n_steps: int | None = option(None,
        "also save last.ckpt every N optimizer steps; by default at epoch ends", at_least(1), actions=TRAINING,
        resume="free")
    metric: str | None = option(None, "what selects the best checkpoint, on the first validation split: a metric of "
        "the data set, or loss; by default its first metric. Equal values: the lower loss", actions=TRAINING)
    patience: int | None = option(None, "stop after N validations without a better --metric; by default never",
        at_least(1), actions=TRAINING, resume="free")
    stop_after: int | float | None = option(None,
        "stop after N optimizer steps, or share of the run, with the learning rates of the whole run, which a resumed "
        "run continues", count_or_share, actions=TRAINING, resume="start")
    auto_requeue: bool = option(False, "requeue the job when SLURM preempts it", old_keys=("is_to_auto_requeue",),
        actions=TRAINING, resume="free",
        idle=lambda run: None if "SLURM_JOB_ID" in os.environ else "outside a SLURM job")
