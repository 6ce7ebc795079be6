"""A run folder → all that a report shows of it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actions.export import LORA, SHORTCUT
from actions.imp_test import SCORES
from actions.options import ACTIONS, defaults
from actions.run_folder import CONFIG, LOGS, METRICS, PARAMETERS
from heterolora import history as history_file
from heterolora import scores as scores_file
from heterolora.allocation import allocate, default_mode, tie_generator
from heterolora.config import load
from heterolora.element import Kind, Place
from heterolora.errors import UserError
from heterolora.history import History
from heterolora.scores import Scores
from tools.reporting.curves import Curves, read_curves

#: Figures by split: split → metric → value, `None` where it is no number.
Figures = Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class Run:
    """What a run folder holds.

    Attributes:
        name: of the run, unique in a report.
        folder: the run's.
        action: what was run; empty if the folder does not say.
        options: the resolved options.
        curves: what was logged.
        figures: final metrics by split; empty where there are none (yet).
        versions: of the packages.
        parameters: the parameter table, as plain values; empty where there is none.
        scores: of an importance test.
        history: of a dynamic run.
        ranks: rank of every element of the result, 0 where it is off; empty where there is no result.
    """

    name: str
    folder: Path
    action: str
    options: Mapping[str, Any]
    curves: Curves
    figures: Figures
    versions: Mapping[str, str]
    parameters: Mapping[str, Any]
    scores: Scores | None
    history: History | None
    ranks: Mapping[Place, int]

    def option(self, name: str) -> Any:
        return self.options.get(name, defaults()[name])

    @property
    def missing_figures(self) -> str:
        """Why there are none; empty where there are, and where none are to come."""
        if self.figures or self.action == "imp-test":
            return ""
        return "has no metrics yet: they are measured when training is over"

    @property
    def elements_on(self) -> frozenset[str]:
        """Keys of the elements that the result has."""
        return frozenset(place.key for place, rank in self.ranks.items() if rank)

    @property
    def chosen(self) -> frozenset[str]:
        """Keys of the elements that the run's own budget turns on by the scores."""
        if self.scores is None:
            return frozenset()
        mode = self.option("dyrealloc_ags_mode") or default_mode(self.scores.has_shortcuts)
        draw = tie_generator(self.option("seed"), 0)
        return allocate(self.scores.scored, self.option("turn_on_percentile"), mode, draw)


def read_runs(folders: list[Path]) -> tuple[Run, ...]:
    """All runs, in the order given.

    Raises:
        UserError: a folder is no run or is given twice, or one of its files can't be read.
    """
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"{folder} is given twice", "give each run once")
    return tuple(_read(folder, name) for folder, name in zip(folders, _names(resolved), strict=True))


def _names(folders: list[Path]) -> list[str]:
    """The folders' own names, with as many of the folders above as tell them apart."""
    for depth in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-depth:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{folder} is no run: it has no {CONFIG}" if folder.is_dir() else f"{folder} is not there",
            "give folders that train, train-dyrealloc or imp-test made, such as runs/NAME",
        )
    text = (folder / CONFIG).read_text(encoding="utf-8")
    try:
        options = tomllib.loads(text)
    except tomllib.TOMLDecodeError as reason:
        raise UserError(f"{folder / CONFIG} is not TOML: {reason}", "expected the file that the run wrote") from None
    action = re.match(r"# python -m main (\S+)", text)
    results = _read_json(folder / METRICS)
    return Run(
        name=name,
        folder=folder,
        action=action[1] if action and action[1] in ACTIONS else "",
        options=options,
        curves=read_curves(folder / LOGS, options.get("logger", defaults()["logger"])),
        figures=results.get("metrics", {}),
        versions=results.get("versions", {}),
        parameters=_read_json(folder / PARAMETERS),
        scores=scores_file.read(folder / SCORES) if (folder / SCORES).is_file() else None,
        history=history_file.read(folder) if (folder / history_file.HISTORY).is_file() else None,
        ranks=_ranks(folder),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as reason:
        raise UserError(f"{path} is not JSON: {reason}", "expected the file that the run wrote") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no table", "expected the file that the run wrote")
    return values


def _ranks(folder: Path) -> dict[Place, int]:
    """From the result's layer-wise configurations, which have a table for every element, on or off."""
    files: dict[Kind, str] = {"lora": LORA, "shortcut": SHORTCUT}
    ranks = {}
    for kind, file in files.items():
        if (folder / file).is_file():
            sites = load(folder / file, kind).sites
            ranks |= {
                Place(*site): s.rank if s.candidate else 0 for site, s in sites.items() if isinstance(site, tuple)
            }
    return ranks
