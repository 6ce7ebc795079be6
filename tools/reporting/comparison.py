"""Runs side by side: what they are, their figures with the best of each row marked, and their means over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple, TypeVar

from heterolora.errors import UserError
from model.metrics import mode
from tools.reporting.run import Run, compared_options

Value = TypeVar("Value")


class Cell(NamedTuple):
    """A value of a table, and whether it is the best of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table: its label, an arrow to better values (or nothing), and a cell for each column."""

    label: str
    arrow: str
    cells: tuple[Cell, ...]

    @classmethod
    def of(cls, label: str, *texts: str) -> Row:
        return cls(label, "", tuple(map(Cell, texts)))


def facts(runs: Sequence[Run]) -> list[Row]:
    """The action, model and data of each run, and the options by which the runs differ."""
    named = {"model": "model", "load": "base", "dataset": "data set", "task": "task"}
    rows = [Row.of("action", *(run.action for run in runs))]
    rows += [Row.of(label, *(run.shown(name) for run in runs)) for name, label in named.items()]
    for name, flag in compared_options().items():
        values = [run.shown(name) for run in runs]
        if name not in named and len(set(values)) > 1:
            rows.append(Row.of(flag, *values))
    return rows


def comparison(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Heading → rows: the sizes of the runs, then the metrics of each split."""
    count = "{:,}".format
    sizes = [
        row_of("trainable parameters", [run.parameters.get("trainable") for run in runs], "min", count),
        row_of("of all", [share(run) for run in runs], None, percent),
        row_of("elements on", [len(run.elements_on) or None for run in runs], None, count),
        row_of("reallocations", [run.history and len(run.history.decisions) for run in runs], None, count),
    ]
    known = [row for row in sizes if row is not None]
    values = _by_split(runs, lambda split, metric: [run.figures.get(split, {}).get(metric) for run in runs])
    metrics = _metric_rows(values, "{:.4f}".format, float)
    return ({"parameters": known} if known else {}) | metrics


Values = dict[tuple[str, str], list[Value | None]]  # (split, metric) → a value for each column


def _by_split(runs: Sequence[Run], values: Callable[[str, str], list[Value | None]]) -> Values:
    keys = [(split, metric) for run in runs for split, figures in run.figures.items() for metric in figures]
    splits = list(dict.fromkeys(split for split, _ in keys))
    return {key: values(*key) for key in sorted(dict.fromkeys(keys), key=lambda key: splits.index(key[0]))}


def _metric_rows(values: Values, write: Callable[[Value], str], size: Callable[[Value], float]) -> dict[str, list[Row]]:
    """Split → a row for each metric that has a value."""
    rows: dict[str, list[Row]] = {}
    for (split, metric), found in values.items():
        if (row := row_of(metric, found, better(metric), write, size)) is not None:
            rows.setdefault(split, []).append(row)
    return rows


def better(metric: str) -> str | None:
    """`min` or `max`; `max` for the benchmarks' own metrics; `None` for what is not a metric."""
    name = metric.rsplit("/", 1)[-1]
    if name == "loss":
        return "min"
    if metric.startswith("official/"):
        return "max"
    try:
        return mode(name)
    except UserError:
        return None


def row_of(
    label: str,
    values: Sequence[Value | None],
    direction: str | None,
    write: Callable[[Value], str],
    size: Callable[[Value], float] = float,
) -> Row | None:
    """A row of values, compared by `size`. Equal values can all be best, but not if all values are equal.

    Returns `None` if there is no value.
    """
    sizes = [None if value is None else size(value) for value in values]
    known = {some for some in sizes if some is not None}
    if not known:
        return None
    best = {"min": min, "max": max}[direction](known) if direction is not None and len(known) > 1 else None
    cells = (
        Cell("–") if value is None else Cell(write(value), some == best)
        for value, some in zip(values, sizes, strict=True)
    )
    return Row(label, {"min": "↓", "max": "↑", None: ""}[direction], tuple(cells))


def share(run: Run) -> float | None:
    """Trainable parameters as a share of all."""
    total = run.parameters.get("total")
    return run.parameters["trainable"] / total if total else None


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


# ---- over seeds


@dataclass(frozen=True)
class Group:
    """Runs with final metrics whose action and options are the same but for the seed; the start of their names."""

    name: str
    runs: tuple[Run, ...]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Groups all runs that have final metrics, in order of their first runs. Empty if no group has two seeds."""
    options = [name for name in compared_options() if name != "seed"]
    same: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.figures:
            same.setdefault((run.action, *map(run.shown, options)), []).append(run)
    if not any(len({run.option("seed") for run in group}) > 1 for group in same.values()):
        return []
    return [Group(_common(group), tuple(group)) for group in same.values()]


def _common(group: Sequence[Run]) -> str:
    columns = itertools.takewhile(
        lambda letters: len(set(letters)) == 1, zip(*(run.name for run in group), strict=False)
    )
    return "".join(letters[0] for letters in columns).rstrip("-_./ ") or group[0].name


def spreads(found: Sequence[Group]) -> dict[str, list[Row]]:
    """Split → a row for each metric with the mean (lowest–highest) of each group; the best mean is marked."""

    def values(split: str, metric: str) -> list[list[float] | None]:
        """Of all runs of each group; `None` if a run has no number: a mean of the others would hide it."""
        of_groups = [[run.figures.get(split, {}).get(metric) for run in group.runs] for group in found]
        return [None if None in some else some for some in of_groups]

    return _metric_rows(_by_split([run for group in found for run in group.runs], values), _mean_and_spread, fmean)


def _mean_and_spread(values: list[float]) -> str:
    spread = f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}"
