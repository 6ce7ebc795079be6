"""The runs of a folder, with what a list of them shows. Nothing that computes is imported before a run needs it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actions.result.metrics_file import headline, read_metrics
from actions.run.in_use import holder
from actions.run.run_folder import CHECKPOINTS, CONFIG, METRICS, PARAMETERS, SCORES, is_finished
from heterolora.common.errors import UserError
from heterolora.common.outside import read_json, read_toml
from options.actions import IMP_TEST, TEST, TRAINING
from options.every import defaults

FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"
_WRITTEN = "expected the file that the run wrote"


@dataclass(frozen=True)
class ListedRun:
    """A run in a list.

    Attributes:
        parameters: that it trains; None if they are not known.
        metric, value: of its first measured split; None if it measured nothing.
        state: `finished`, `running` or `stopped`.
        step: the optimizer step of its last checkpoint, if it stopped there.
        to_continue: the command that continues it, if it can be continued.
    """

    name: str
    folder: str
    started: float  # seconds since 1970
    action: str
    model: str
    dataset: str
    parameters: int | None
    metric: str | None
    value: float | None
    state: str
    step: int | None = None
    to_continue: str | None = None


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def run_folders(folder: Path) -> list[Path]:
    """The runs directly in a folder, newest first. Other folders in it are left out."""
    found = (path for path in folder.iterdir() if is_run(path))
    return sorted(found, key=lambda path: (path / CONFIG).stat().st_mtime, reverse=True)


def listed(folder: Path) -> ListedRun:
    """Read one run. Raises UserError if one of its files is damaged."""
    options = read_toml(folder / CONFIG, "the options of the run", _WRITTEN)
    action = str(options.get("action") or _action(folder))
    state, step = _state(folder, action, options)
    continues = step is not None
    command = f"python -m main {action} --resume-training --load {shlex.quote(str(folder))}"
    metric, value = _metric(folder, options)
    return ListedRun(
        name=folder.name,
        folder=str(folder),
        started=(folder / CONFIG).stat().st_mtime,
        action=action,
        model=_model(options),
        dataset=Path(str(options.get("dataset", defaults()["dataset"]))).name,
        parameters=_trainable(folder),
        metric=metric,
        value=value,
        state=state,
        step=step,
        to_continue=command if continues else None,
    )


def _action(folder: Path) -> str:
    """Of a run of a version that did not write its action."""
    return IMP_TEST if (folder / SCORES).is_file() else TRAINING[0] if (folder / CHECKPOINTS).is_dir() else TEST


def _model(options: Mapping[str, Any]) -> str:
    model, load = str(options.get("model", defaults()["model"])), options.get("load")
    return model if load in (None, model) else f"{model} {Path(str(load)).name}"


def _trainable(folder: Path) -> int | None:
    path = folder / PARAMETERS
    found = read_json(path, "the parameter table", _WRITTEN).get("trainable") if path.is_file() else None
    return found if isinstance(found, int) else None


def _metric(folder: Path, options: Mapping[str, Any]) -> tuple[str | None, float | None]:
    figures, _ = read_metrics(folder)
    if (found := headline(figures, str(options.get("dataset")), options.get("metric"))) is None:
        return None, None
    split, name = found
    return name, figures[split].get(name)


def _state(folder: Path, action: str, options: Mapping[str, Any]) -> tuple[str, int | None]:
    """Whether the run is finished, and otherwise the step of its last checkpoint."""
    if holder(folder) is not None:
        return RUNNING, None
    finished = is_finished(folder)
    if finished is None:  # of a version without run.json
        finished = (folder / (SCORES if action == IMP_TEST else METRICS)).is_file()
    if finished and options.get("stop_after") is None:
        return FINISHED, None
    last = folder / CHECKPOINTS / "last.ckpt"
    if not last.is_file():
        return STOPPED, None

    from model.checkpoint import step_of

    return STOPPED, step_of(last)


def readable(folders: Sequence[Path]) -> tuple[list[ListedRun], list[str]]:
    """The runs that can be read, and why the others cannot."""
    runs, damaged = [], []
    for folder in folders:
        try:
            runs.append(listed(folder))
        except UserError as error:
            damaged.append(error.found)
    return runs, damaged
