"""The answer of a study: its arms side by side, and one sentence for each task and budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from tools.studies.results import Measured, rows_of
from tools.studies.spec import Study
from tools.studies.statistics import Difference, Interval, differences, interval

T = TypeVar("T")


@dataclass(frozen=True)
class ArmResult:
    """One arm at its best learning rate.

    Attributes:
        quality: the measure, over seeds and rows.
        against: its difference from the baseline; None for the baseline.
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
        missing: arm -> why it has no result.
        untuned: arm with a result -> learning rate -> why the rate has none.
    """

    task: str
    budget: int
    arms: tuple[ArmResult, ...]
    missing: Mapping[str, str]
    untuned: Mapping[str, Mapping[float, str]]
    sentence: str


def compare(
    study: Study,
    task: str,
    budget: int,
    runs: Mapping[str, Sequence[Measured]],
    missing: Mapping[str, str],
    untuned: Mapping[str, Mapping[float, str]] = MappingProxyType({}),
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
    higher = study.measure == "accuracy"
    apart: dict[str, Difference] = {}
    if study.baseline in rows and len(rows) > 1:
        apart = differences(rows, study.baseline, higher, study.confidence, study.resolve)
    arms = tuple(
        ArmResult(
            name,
            found[0].case.learning_rate,
            interval(rows[name].totals, rows[name].counts, study.confidence),
            apart.get(name),
            fmean(run.parameters for run in found),
            _mean([run.step_seconds for run in found]),
            _mean([run.peak_memory_bytes for run in found]),
            fmean(run.seconds for run in found),
            tuple(found),
        )
        for name, found in runs.items()
    )
    untuned = {name: rates for name, rates in untuned.items() if name in runs}
    return Comparison(task, budget, arms, missing, untuned, _sentence(study, arms, missing, untuned))


def _without(names: Collection[str], arms: Mapping[str, T]) -> dict[str, T]:
    return {name: found for name, found in arms.items() if name not in names}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) and known else None


def _sentence(
    study: Study,
    arms: Sequence[ArmResult],
    missing: Mapping[str, str],
    untuned: Mapping[str, Mapping[float, str]],
) -> str:
    """The answer in plain words."""
    base, level = study.baseline, f"{study.confidence:.0%}"
    if base in missing or not arms:
        return f"No comparison: {base} has no result ({missing.get(base, 'no run')})."
    others = {arm.name: arm.against for arm in arms if arm.against is not None}
    if not others:
        return f"No comparison: only {base} has a result."
    alpha = 1 - study.confidence
    better = [name for name, d in others.items() if d.corrected <= alpha and d.interval.estimate > 0]
    worse = [name for name, d in others.items() if d.corrected <= alpha and d.interval.estimate < 0]
    parts = []
    for verb, names in (("beats", better), ("is worse than", worse)):
        for name in sorted(names, key=lambda name: -abs(others[name].interval.estimate)):
            found = others[name].interval
            low, high = sorted((abs(found.low), abs(found.high)))
            parts.append(f"{name} {verb} {base} by {abs(found.estimate):.4f} ({low:.4f} to {high:.4f}, {level})")
    text = "; ".join(parts) + ", at equal parameters." if parts else ""
    if rest := {name: d for name, d in others.items() if name not in (*better, *worse)}:
        text = f"{text} {_not_shown(study, rest, others=bool(parts))}".strip()
    text += _ends_of_the_rates(study, arms)
    if untuned:
        rates = (f"{rate:g} for {name}" for name, lost in untuned.items() for rate in lost)
        text += f" Learning rates without a result: {', '.join(rates)}."
    if missing:
        text += f" Without a result: {', '.join(missing)}."
    return text


def _not_shown(study: Study, rest: Mapping[str, Difference], others: bool) -> str:
    """What is possible for the arms without a significant difference. `others` says that there are arms with one."""
    base, level = study.baseline, f"{study.confidence:.0%}"
    bound = max(max(abs(d.simultaneous.low), abs(d.simultaneous.high)) for d in rest.values())
    undecided = {name: d for name, d in rest.items() if _undecided(d, study.resolve)}
    if not undecided:
        arm = "other arm" if others else "arm"
        return f"No {arm} differs from {base} by more than {bound:.4f} ({level}, all arms together)."
    every = "the other arms" if others else "all arms"
    whom = every if len(undecided) == len(rest) else ", ".join(undecided)
    return (
        f"No difference from {base} is shown{' for the other arms' if others else ''}, but differences up to "
        f"{bound:.4f} are possible ({level}, all arms together). To decide about {study.resolve:g} for {whom}: "
        f"{_needed(study, undecided)}"
    )


def _ends_of_the_rates(study: Study, arms: Sequence[ArmResult]) -> str:
    """Which arms may have a better rate than those that were tried. It can decide the whole comparison."""
    rates = study.learning_rates
    ends = {"lowest": min(rates), "highest": max(rates)} if len(rates) > 1 else {}
    found = {end: [arm.name for arm in arms if arm.learning_rate == rate] for end, rate in ends.items()}
    parts = [f"the {end} one for {', '.join(names)}" for end, names in found.items() if names]
    return f" The best learning rate is {' and '.join(parts)}: a rate beyond it may be better." if parts else ""


def _undecided(difference: Difference, resolve: float) -> bool:
    return max(abs(difference.simultaneous.low), abs(difference.simultaneous.high)) > resolve


def _needed(study: Study, undecided: Mapping[str, Difference]) -> str:
    """How many seeds would decide."""
    needed = [difference.seeds_needed for difference in undecided.values()]
    if len(study.seeds) == 1:
        return "measure with more than one seed."
    if None in needed:
        return "measure on more rows. With these, no number of seeds is enough."
    return f"about {max(*needed, len(study.seeds) + 1)} seeds are needed."
