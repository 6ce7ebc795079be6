"""Runs side by side: what they are, and their figures with the best of each row marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from actions.options import declared, flag_of
from heterolora.errors import UserError
from model.metrics import mode
from tools.reporting.run import Run

Value = TypeVar("Value")

OF_A_PLACE = ("project", "project_dir", "load_type", "resume_training", "config")  # no run differs by these


@dataclass(frozen=True)
class Cell:
    """A value of a table, and whether it is the best of its row."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A row of the comparison: what it is, which direction is better, and a cell for each run."""

    label: str
    arrow: str
    cells: tuple[Cell, ...]


def facts(runs: Sequence[Run]) -> list[Row]:
    """What was run, and the options by which the runs differ."""
    rows = [
        ("action", [run.action for run in runs]),
        ("model", [run.option("model") for run in runs]),
        ("base", [run.option("load") or "" for run in runs]),
        ("data set", [run.option("dataset") for run in runs]),
        ("task", [run.option("task") or "" for run in runs]),
    ]
    shown = {"model", "load", "dataset", "task", *OF_A_PLACE}
    for name in declared():
        values = [as_text(run.option(name)) for run in runs]
        if name not in shown and len(set(values)) > 1:
            rows.append((flag_of(name), values))
    return [Row(label, "", tuple(Cell(str(value)) for value in values)) for label, values in rows]


def comparison(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Figures by heading: parameters, then each split's metrics; the best value of a row is marked."""
    sizes = [
        row_of("trainable parameters", [run.parameters.get("trainable") for run in runs], "min", _whole),
        row_of("of all", [share(run) for run in runs], None, percent),
        row_of("elements on", [len(run.elements_on) or None for run in runs], None, _whole),
        row_of("reallocations", [run.history and len(run.history.decisions) for run in runs], None, _whole),
    ]
    known = [row for row in sizes if row is not None]

    def metric_row(split: str, metric: str) -> Row | None:
        values = [run.figures.get(split, {}).get(metric) for run in runs]
        return row_of(metric, values, better(metric), "{:.4f}".format)

    return ({"parameters": known} if known else {}) | by_split(runs, metric_row)


def by_split(runs: Sequence[Run], row: Callable[[str, str], Row | None]) -> dict[str, list[Row]]:
    """Split → the row that `row` makes of each of its metrics, in the order of the files; what has none is left out."""
    found = {}
    for split in dict.fromkeys(split for run in runs for split in run.figures):
        metrics = dict.fromkeys(metric for run in runs for metric in run.figures.get(split, {}))
        found[split] = [made for metric in metrics if (made := row(split, metric)) is not None]
    return {split: rows for split, rows in found.items() if rows}


def better(metric: str) -> str | None:
    """`min` or `max`, also for the benchmarks' own metrics, of which more is better; `None` for what is no metric."""
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
    """`None` if there is no value. Values compare by `size`; equal ones are all best, unless that is every one."""
    sizes = [None if value is None else size(value) for value in values]
    there = {some for some in sizes if some is not None}
    if not there:
        return None
    best = None
    if direction is not None and len(there) > 1:
        best = min(there) if direction == "min" else max(there)
    cells = tuple(
        Cell("–") if value is None else Cell(write(value), some == best)
        for value, some in zip(values, sizes, strict=True)
    )
    return Row(label, {"min": "↓", "max": "↑", None: ""}[direction], cells)


def share(run: Run) -> float | None:
    total = run.parameters.get("total")
    return run.parameters["trainable"] / total if total else None


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _whole(value: float) -> str:
    return f"{value:,}"


def as_text(value: Any) -> str:
    """An option's value, in full: 1 and 1.0 are a batch and an epoch, and a digit that is cut off is a difference."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)
