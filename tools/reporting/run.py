"""Reads a run folder. Only this file of the report knows how options are declared."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from tools.cli import check_different

from actions.command.configurations import KEYS, in_options
from actions.result.classes import Confusion, read_classes
from actions.result.metrics_file import headline, read_metrics, read_resources, read_row_counts
from actions.run.run_folder import CHECKPOINTS, CONFIG, LOGS, LORA, PARAMETERS, SCORES, SHORTCUT
from dataset import registry
from heterolora.choosing import history as history_file
from heterolora.choosing import scores as scores_file
from heterolora.choosing.history import History
from heterolora.choosing.scores import Scores
from heterolora.choosing.words import choice_in_words
from heterolora.common.checks import TEXT, Condition, check_keys, check_known, whole_number
from heterolora.common.errors import UserError
from heterolora.common.outside import read_json, read_toml
from heterolora.elements.config import ElementConfig, load, parse_config
from heterolora.elements.element import Kind, Place
from heterolora.elements.task import TASKS
from model.family import parse_model_name
from options.actions import ACTIONS, DYREALLOC, IMP_TEST, TEST, TRAIN
from options.declare import flag_of
from options.every import declared, defaults
from tools.reporting.curves import Curves, read_curves

_OF_A_PLACE = ("project", "project_dir", "load_type", "resume_training", "config")  # where a run reads and writes
_WRITTEN_BY_A_RUN = "expected the file that the run wrote"
_COUNT, _LIST = whole_number(0), Condition(lambda value: isinstance(value, list), "a list")
_RANKS = Condition(lambda value: _LIST.valid(value) and all(map(_COUNT.valid, value)), "a list of ranks")
_PARAMETERS = {"trainable": _COUNT, "total": whole_number(1), "rows": _LIST}
_ROW = {
    **{"kind": TEXT, "name": TEXT, "ranks": _RANKS},
    **dict.fromkeys(("trainable", "total", "on", "off"), _COUNT),
}


class Setting(NamedTuple):
    """An option of a run: its flag, its value, and whether that is the default."""

    flag: str
    value: str
    default: bool


@dataclass(frozen=True)
class Run:
    """The contents of a run folder. An attribute is empty or `None` if the folder does not have its file (yet)."""

    name: str  # unique in a report
    folder: Path
    action: str
    options: Mapping[str, Any]  # the resolved options
    configurations: str  # LoRA's and that of shortcuts, as one text
    curves: Curves
    figures: Mapping[str, Mapping[str, float | None]]  # split → metric → final value, `None` if it is not a number
    versions: Mapping[str, str]  # of the packages
    parameters: Mapping[str, Any]  # the parameter table
    scores: Scores | None
    history: History | None
    ranks: Mapping[Place, int]  # of every element of the result; 0 if it is off
    classes: tuple[str, ...]  # of a classification
    confusion: Mapping[str, Confusion]  # split → confusion matrix of a classification
    resources: Mapping[str, float]  # what training took: seconds and bytes
    rows: Mapping[str, int]  # split → its rows
    started: str  # date and time

    def option(self, name: str) -> Any:
        return self.options.get(name, defaults()[name])

    def shown(self, name: str) -> str:
        """The value of an option, with all digits: 1 means a batch and 1.0 an epoch."""
        return as_text(self.option(name))

    def settings(self) -> dict[str, list[Setting]]:
        """Heading of `--help` → the options that have an effect on the run."""
        groups: dict[str, list[Setting]] = {}
        for name, info in declared().items():
            if self.uses(name) and name != "config":
                setting = Setting(info.flag, self.shown(name), info.is_default(self.option(name)))
                groups.setdefault(info.group, []).append(setting)
        return groups

    def uses(self, name: str) -> bool:
        """Whether an option has an effect on the run."""
        info = declared()[name]
        adapted = parse_model_name(self.option("model")) is not None
        run = {**defaults(), **self.options, "action": self.action, "adapted": adapted}
        run["entry"] = registry.find(run["dataset"])
        return info.used_by(self.action) and (info.idle is None or info.idle(run) is None)

    @property
    def subject(self) -> tuple[str, str]:
        """Data set and task: only figures of equal subjects can be compared."""
        return self.shown("dataset"), self.shown("task")

    @property
    def loss(self) -> str:
        """What the loss is. Losses of different kinds are not compared."""
        entry, task = registry.find(self.option("dataset")), TASKS.get(self.option("task"))
        if task is None or not task.classifies:
            return "cross-entropy of tokens"
        if entry.regression if entry else self.option("regression"):
            return "squared error"
        several = entry.multi_label if entry else self.option("multi_label")
        return "binary cross-entropy" if several else "cross-entropy of classes"

    @property
    def headline(self) -> tuple[str, str] | None:
        """Split and name of the metric that selected the best checkpoint. None if it was not measured."""
        return headline(self.figures, self.option("dataset"), self.options.get("metric"))

    @property
    def places(self) -> tuple[Place, ...]:
        """The places of all maps of the run."""
        scored = [item.element for item in self.scores.scored] if self.scores else []
        return (*self.ranks, *(self.history.places if self.history else ()), *scored)

    @property
    def choice(self) -> str:
        """Which elements are on, in words; empty for a plain model."""
        return choice_in_words([*self.ranks], self.elements_on) if self.ranks else ""

    @property
    def missing_figures(self) -> str:
        """Why there are no final metrics; empty if there are some, and for an importance test."""
        if self.figures or self.action == IMP_TEST:
            return ""
        return "has no metrics yet: they are measured at the end of training"

    @property
    def elements_on(self) -> frozenset[str]:
        """Keys of the elements of the result that are on."""
        return frozenset(place.key for place, rank in self.ranks.items() if rank)


def compared_options() -> dict[str, str]:
    """Name → flag of the options by which runs can differ."""
    return {name: flag_of(name) for name in declared() if name not in _OF_A_PLACE}


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def read_runs(folders: Sequence[Path]) -> tuple[Run, ...]:
    """Read all runs, in the order given.

    Raises UserError if a folder is not a run or is given twice, or if one of its files cannot be read.
    """
    check_different(folders)
    return tuple(_read(folder, name) for folder, name in zip(folders, names_of(folders), strict=True))


def names_of(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parent folders as make them unique."""
    paths = [Path(os.path.realpath(folder)) for folder in folders]
    candidates = (["/".join(path.parts[-depth:]) for path in paths] for depth in itertools.count(1))
    return next(names for names in candidates if len(set(names)) == len(names))


def _read(folder: Path, name: str) -> Run:
    if not (folder / CONFIG).is_file():
        other = "is a file" if folder.exists() else "is not there"
        found = f"is no run: it has no {CONFIG}" if folder.is_dir() else other
        raise UserError(
            f"{folder} {found}",
            "give folders that train, train-dyrealloc or imp-test made, such as runs/NAME",
        )
    action, options, configurations = _options(folder)
    figures, versions = read_metrics(folder)
    classes, confusion = read_classes(folder)
    return Run(
        name=name,
        folder=folder,
        action=action,
        options=options,
        configurations=configurations,
        curves=read_curves(folder / LOGS, options.get("logger", defaults()["logger"])),
        figures=figures,
        versions=versions,
        parameters=_parameters(folder / PARAMETERS),
        scores=scores_file.read(folder / SCORES) if (folder / SCORES).is_file() else None,
        history=history_file.read(folder) if _has_reallocated(folder / history_file.HISTORY) else None,
        ranks={} if action == IMP_TEST else _ranks(folder),  # a user may keep a chosen configuration beside the scores
        classes=classes,
        confusion=confusion,
        resources=read_resources(folder),
        rows=read_row_counts(folder),
        started=f"{datetime.fromtimestamp((folder / CONFIG).stat().st_mtime):%Y-%m-%d %H:%M}",
    )


def _has_reallocated(history: Path) -> bool:
    """The file is there, and empty, from the start of the run on."""
    return history.is_file() and history.stat().st_size > 0


def _action(folder: Path) -> str:
    """The action of a run whose configuration does not name it, from the files that the action writes."""
    signs = {SCORES: IMP_TEST, history_file.HISTORY: DYREALLOC, CHECKPOINTS: TRAIN}
    return next((action for file, action in signs.items() if (folder / file).exists()), TEST)


def _options(folder: Path) -> tuple[str, dict[str, Any], str]:
    """The action of a run, the options that are still known, and the text of its configurations."""
    path = folder / CONFIG
    values = read_toml(path, "the options of the run", _WRITTEN_BY_A_RUN)
    action = values.pop("action", None) or _action(folder)
    check_known(f"{path}: action", TEXT.check(str(path), "action", action), ACTIONS)
    known = declared()
    configured: dict[str, Any] = {}
    configurations = json.dumps({key: values.get(key) for key in KEYS}, sort_keys=True)
    for key, kind in KEYS.items():
        if isinstance(values.get(key), Mapping):  # the configuration itself; `_ranks` reads the result
            configured |= _stated(
                key, parse_config(values.pop(key), kind, f"{path}: {key}", any_name=True), values.get("model")
            )
    try:
        options = {name: known[name].from_toml(name, value) for name, value in values.items() if name in known}
    except UserError as error:
        raise UserError(f"{path}: {error.found}", error.expected) from error
    return action, options | configured, configurations


def _stated(key: str, config: ElementConfig, model: Any) -> dict[str, Any]:
    """A configuration as options that can be compared: --rank, --alpha and --target, or some words if it differs by
    place.
    """
    adapted = parse_model_name(model) if isinstance(model, str) else None
    if config.kind == "lora" and (uniform := in_options(config, adapted)) is not None:
        return uniform
    highest = max((each.rank for each in (config.default, *config.sites.values()) if each.candidate), default=0)
    return {key: f"{config.granularity}-wise, up to rank {highest}"}


def _parameters(path: Path) -> dict[str, Any]:
    """The parameter table; empty if the file is missing."""
    if not path.is_file():
        return {}
    table = check_keys(
        str(path), _PARAMETERS, read_json(path, "the parameter table", _WRITTEN_BY_A_RUN), _WRITTEN_BY_A_RUN
    )
    for row in table["rows"]:
        check_keys(f"{path}: a row", _ROW, row, _WRITTEN_BY_A_RUN)
    return dict(table)


def _ranks(folder: Path) -> dict[Place, int]:
    """Read the result's layer-wise configurations, which have a table for every element, on or off."""
    files: dict[Kind, str] = {"lora": LORA, "shortcut": SHORTCUT}
    found = [load(folder / file, kind).sites for kind, file in files.items() if (folder / file).is_file()]
    tables = [(site, settings) for sites in found for site, settings in sites.items() if isinstance(site, tuple)]
    return {Place(*site): settings.rank if settings.candidate else 0 for site, settings in tables}
