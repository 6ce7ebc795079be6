"""What the runs of a study found: the best learning rate of each arm, and its measure row by row."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np

from actions.result.export import LORA
from actions.result.metrics_file import read_metrics, read_resources
from actions.run.run_folder import METRICS
from actions.training.halving import promoted
from heterolora.common.errors import UserError
from heterolora.common.outside import read_text
from heterolora.elements.config import load
from heterolora.elements.element import Element, Place
from model.task.rows import ROWS
from tools.studies.jobs import Case
from tools.studies.spec import Measure, Study
from tools.studies.statistics import Rows

_RUN_AGAIN = "delete the run folder, and start the study again"


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one row. A run of an older version has no labels and predictions."""

    total: float  # of the measure, over `count`
    count: float
    label: float | None = None
    predicted: float | None = None
    classes: bool = True  # whether the label is a class


@dataclass(frozen=True)
class Measured:
    """The result of one run.

    Attributes:
        rows: split -> row -> its result.
        ranks: of every place at the end; 0 if there is no element, or if it is off.
        parameters: trainable parameters of these elements.
        seconds: wall clock of the run's process, and of scoring before it.
    """

    case: Case
    folder: Path
    rows: Mapping[str, Mapping[int, Row]]
    ranks: Mapping[Place, int]
    parameters: int
    step_seconds: float | None
    peak_memory_bytes: float | None
    seconds: float

    def split(self, study: Study, tuning: bool) -> str:
        """The split whose rows tune, or measure."""
        split = (study.tuning_split if tuning else study.measuring_split) or next(iter(self.rows))
        if split not in self.rows:
            raise UserError(f"{self.case.name} has no split '{split}'", f"expected one of {', '.join(self.rows)}")
        return split

    def on(self, study: Study, tuning: bool) -> dict[int, Row]:
        """The rows that tune, or those that measure."""
        split = self.split(study, tuning)
        rows = self.rows[split]
        if split != self.split(study, not tuning):
            return dict(rows)
        share = Fraction(study.tuning_share).limit_denominator(1000)
        found = {index: values for index, values in rows.items() if _tunes(index, share) == tuning}
        if not found:
            what = "tune" if tuning else "measure"
            raise UserError(f"none of the {len(rows)} rows of split '{split}' is left to {what}", "use a larger split")
        return found


def _tunes(index: int, share: Fraction) -> bool:
    """Whether a row tunes: the first one, and then so many, evenly spread. They are the same rows in every run."""
    return index * share // 1 != (index - 1) * share // 1


def read_measured(case: Case, folder: Path, measure: Measure, elements: Iterable[Element], seconds: float) -> Measured:
    """Read the files of a finished run on `elements`. Raises UserError if a file is missing or wrong."""
    metrics, _ = read_metrics(folder)
    if not metrics:
        raise UserError(f"{folder / METRICS} has no metrics", _RUN_AGAIN)
    final = load(folder / LORA, "lora", any_name=True)
    found = ((element, final.lookup(element.layer, element.name)) for element in elements)
    at = {element: element.settings.at(settings.rank) if settings else None for element, settings in found}
    resources = read_resources(folder)
    return Measured(
        case,
        folder,
        _rows(folder / ROWS, measure, tuple(metrics)),
        {Place(element.layer, element.name): settings.rank if settings else 0 for element, settings in at.items()},
        sum(replace(element, settings=settings).parameters for element, settings in at.items() if settings),
        resources.get("step_seconds"),
        resources.get("peak_memory_bytes"),
        seconds,
    )


def _rows(path: Path, measure: Measure, order: tuple[str, ...]) -> dict[str, dict[int, Row]]:
    """The rows of each split, in the order of `metrics.json`: the first validation split first."""
    found: dict[str, dict[int, Row]] = {split: {} for split in order}
    try:
        for row in csv.DictReader(read_text(path, "the row results", _RUN_AGAIN).splitlines()):
            if measure == "accuracy" and not row["correct"]:
                raise UserError(f"{path} has no labels", 'set measure = "loss" in the study')
            found.setdefault(row["split"], {})[int(row["index"])] = _row(row, measure)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error})", _RUN_AGAIN) from error
    if not any(found.values()):
        raise UserError(f"{path} has no rows", _RUN_AGAIN)
    return {split: rows for split, rows in found.items() if rows}


def _row(row: Mapping[str, str], measure: Measure) -> Row:
    texts = (row.get(name) or "[]" for name in ("label", "predicted"))
    label, predicted = (None if text.startswith("[") else float(text) for text in texts)  # a list if multi-label
    total, count = (row["correct"], 1) if measure == "accuracy" else (row["loss"], row["count"])
    if not 0 < float(count) < math.inf:
        raise ValueError(f"a count is {count}")
    return Row(float(total), float(count), label, predicted, bool(row["correct"]))


def mean(rows: Mapping[int, Row]) -> float:
    """The measure over some rows."""
    return sum(row.total for row in rows.values()) / sum(row.count for row in rows.values())


def end_of(rates: Collection[float], best: float) -> Literal["lowest", "highest"] | None:
    """Which end of the tried rates the best one is. None if it is between others, or the only one."""
    if len(rates) < 2:
        return None
    return "lowest" if best == min(rates) else "highest" if best == max(rates) else None


def beyond(rates: Collection[float], best: float) -> float | None:
    """The rate outside of the tried ones that is as far from the best one as its neighbour. None if it is at no end."""
    if end_of(rates, best) is None:
        return None
    neighbour = min((rate for rate in rates if rate != best), key=lambda rate: abs(math.log(rate / best)))
    return float(f"{best * best / neighbour:.3g}")


@dataclass(frozen=True)
class Rung:
    """A comparison of learning rates, after a share of their runs.

    Attributes:
        values: rate -> the mean measure on the tuning rows, over the tuning seeds. NaN if a run diverged.
        best: the rates that go on, or for the whole run the best one; best first.
    """

    share: float
    values: Mapping[float, float]
    best: tuple[float, ...]


def rung_of(study: Study, share: float, measured: Iterable[Measured]) -> Rung:
    """Compare the tuning runs of one arm. A rate with a failed or diverged run is left out."""
    by_rate: dict[float, list[float]] = {}
    for run in measured:
        by_rate.setdefault(run.case.learning_rate, []).append(mean(run.on(study, tuning=True)))
    values = {rate: fmean(found) for rate, found in sorted(by_rate.items()) if len(found) == len(study.tuning_seeds)}
    higher = study.measure == "accuracy"
    if share < 1:
        return Rung(share, values, promoted(values, higher))
    finite = {rate: value if higher else -value for rate, value in values.items() if np.isfinite(value)}
    return Rung(share, values, (max(finite, key=finite.__getitem__),) if finite else ())


def measuring_rows(study: Study, run: Measured) -> list[Row]:
    """The measuring rows of a run, in order."""
    return [row for _, row in sorted(run.on(study, tuning=False).items())]


def rows_of(study: Study, runs: Iterable[Measured]) -> Rows:
    """The measuring rows of an arm's runs, by seed. All runs have the same rows."""
    found = [run.on(study, tuning=False) for run in sorted(runs, key=lambda run: run.case.seed)]
    indices = sorted(found[0])
    if any(sorted(rows) != indices for rows in found):
        raise UserError("the runs of a study were measured on other rows than each other", "give another --output")
    totals = np.array([[rows[index].total for index in indices] for rows in found])
    return Rows(totals, np.array([found[0][index].count for index in indices]))
