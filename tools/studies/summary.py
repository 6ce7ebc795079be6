"""The arms of a study side by side, for each task and budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from model.mean_squares import Interval, interval
from tools.studies.results import Measured, rows_of
from tools.studies.spec import Study
from tools.studies.statistics import Difference, differences, step_down

T = TypeVar("T")
UNFINISHED = "it is not finished"  # why a run has no result


@dataclass(frozen=True)
class ArmResult:
    """One arm at its best learning rate.

    Attributes:
        quality: the measure, over seeds and rows.
        against: its difference from the baseline; None for the baseline. The question of the study decides what its
            p value is, see `statistics`.
        seconds: wall clock of a run and of the scoring before it, the mean over seeds.
    """

    name: str
    learning_rate: float
    quality: Interval
    against: Difference | None
    parameters: float
    step_seconds: float | None
    peak_memory_bytes: float | None
    seconds: float
    runs: tuple[Measured, ...]


@dataclass(frozen=True)
class Comparison:
    """All arms on one task, at one budget.

    Attributes:
        budget: None if each arm has its own size.
        arms: the largest one first if each has its own size.
        missing: arm -> why it has no result.
        untuned: arm with a result -> learning rate -> why the rate has none.
        tried: arm -> its learning rates; without it, those of the study.
    """

    task: str
    budget: int | None
    arms: tuple[ArmResult, ...]
    missing: Mapping[str, str]
    untuned: Mapping[str, Mapping[float, str]]
    tried: Mapping[str, Collection[float]]

    @property
    def heading(self) -> str:
        return self.task if self.budget is None else f"{self.task}, {self.budget:,} parameters"


def compare(
    study: Study,
    task: str,
    budget: int | None,
    runs: Mapping[str, Sequence[Measured]],
    missing: Mapping[str, str],
    untuned: Mapping[str, Mapping[float, str]] = MappingProxyType({}),
    tried: Mapping[str, Collection[float]] = MappingProxyType({}),
) -> Comparison:
    """Compare the arms that have a run for every seed. `runs`: arm -> its runs at the best learning rate."""
    rows = {name: rows_of(study, found) for name, found in runs.items()}
    broken = [name for name, found in rows.items() if not np.isfinite(found.totals).all()]
    missing = {**missing, **dict.fromkeys(broken, f"the {study.measure} of a row is not finite")}
    rows, runs = _without(broken, rows), _without(broken, runs)
    if (base := rows.get(study.baseline)) is not None:
        unlike = [name for name, other in rows.items() if not np.array_equal(other.counts, base.counts)]
        missing = {**missing, **dict.fromkeys(unlike, f"it is measured on other rows than {study.baseline}")}
        rows, runs = _without(unlike, rows), _without(unlike, runs)
    if study.question == "smallest":
        rows = dict(sorted(rows.items(), key=lambda item: -fmean(run.parameters for run in runs[item[0]])))
    apart: dict[str, Difference] = {}
    if study.baseline in rows and len(rows) > 1:
        judge = step_down if study.question == "smallest" else differences
        apart = judge(rows, study.baseline, study.measure == "accuracy", study.confidence, study.resolve)
    arms = tuple(
        ArmResult(
            name,
            runs[name][0].case.learning_rate,
            interval(found.totals, found.counts, study.confidence),
            apart.get(name),
            fmean(run.parameters for run in runs[name]),
            _mean([run.step_seconds for run in runs[name]]),
            _mean([run.peak_memory_bytes for run in runs[name]]),
            fmean(run.seconds for run in runs[name]),
            tuple(runs[name]),
        )
        for name, found in rows.items()
    )
    untuned = {name: rates for name, rates in untuned.items() if name in runs}
    return Comparison(task, budget, arms, missing, untuned, tried)


def _without(names: Collection[str], arms: Mapping[str, T]) -> dict[str, T]:
    return {name: found for name, found in arms.items() if name not in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) and known else None
