"""Runs side by side: what they are, and their figures with the best of each row marked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from actions.options import declared, flag_of
from dataset.errors import UserError
from model.metrics import mode
from tools.reporting.charts import number
from tools.reporting.run import Run

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
    found: dict[str, list[Row]] = {}
    sizes = [
        row_of("trainable parameters", [run.parameters.get("trainable") for run in runs], "min", _whole),
        row_of("of all", [share(run) for run in runs], None, percent),
        row_of("elements on", [len(run.elements_on) or None for run in runs], None, _whole),
        row_of("reallocations", [run.history and len(run.history.decisions) for run in runs], None, _whole),
    ]
    found["parameters"] = [row for row in sizes if row is not None]
    for split in dict.fromkeys(split for run in runs for split in run.figures):
        metrics = dict.fromkeys(name for run in runs for name in run.figures.get(split, {}))
        rows = (
            row_of(name, [run.figures.get(split, {}).get(name) for run in runs], better(name), lambda v: f"{v:.4f}")
            for name in metrics
        )
        found[split] = [row for row in rows if row is not None]
    return {heading: rows for heading, rows in found.items() if rows}


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
    label: str, values: Sequence[float | None], direction: str | None, write: Callable[[Any], str]
) -> Row | None:
    """`None` if no run has a value. Equal values are all best, unless that is every one."""
    there = [value for value in values if value is not None]
    if not there:
        return None
    best = None
    if direction is not None and len(set(there)) > 1:
        best = min(there) if direction == "min" else max(there)
    cells = tuple(Cell("–" if value is None else write(value), value is not None and value == best) for value in values)
    return Row(label, {"min": "↓", "max": "↑", None: ""}[direction], cells)


def share(run: Run) -> float | None:
    total = run.parameters.get("total")
    return run.parameters["trainable"] / total if total else None


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _whole(value: float) -> str:
    return f"{value:,}"


def as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else number(value) if isinstance(value, float) else str(value)
