"""The curves of a run, from the files that its logger wrote."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heterolora.errors import UserError

Point = tuple[int, float]

# Logged beside the curves: a count, and figures of the best weights, which belong to no step.
_NO_CURVES = ("epoch", "final/")


@dataclass(frozen=True)
class Curves:
    """What was logged.

    Attributes:
        series: name → (optimizer step, value) in the order of steps, one value a step.
        missing: why there are none; empty where there are.
    """

    series: Mapping[str, tuple[Point, ...]]
    missing: str = ""


def read_curves(logs: Path, logger: str) -> Curves:
    """The curves in a run's `logs` folder.

    Args:
        logs: the folder; it need not be there.
        logger: `--logger` of the run, to say why there is nothing.

    Raises:
        UserError: a file can't be read.
    """
    series: dict[str, tuple[Point, ...]] = {}
    if (logs / "metrics.csv").is_file():
        series = _from_csv(logs / "metrics.csv")
    elif any(logs.glob("events.out.tfevents.*")):
        series = _from_tensorboard(logs)
    kept = {name: points for name, points in sorted(series.items()) if not name.startswith(_NO_CURVES)}
    return Curves(kept, "" if kept else _why_none(logs, logger))


def _why_none(logs: Path, logger: str) -> str:
    if logger == "none":
        return "The run had --logger none: it kept no curves."
    if logger == "wandb":
        return "The run's curves are with Weights & Biases, which this report does not read."
    return "Nothing is logged yet."


def _from_csv(path: Path) -> dict[str, tuple[Point, ...]]:
    found: dict[str, list[Point]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name != "step":
                        found.setdefault(name, []).append((int(row["step"]), float(value)))
    except (ValueError, KeyError, TypeError, csv.Error) as reason:
        raise UserError(f"{path} can't be read ({reason})", "expected the file of a CSV logger") from None
    return {name: _one_a_step(points) for name, points in found.items()}


def _from_tensorboard(logs: Path) -> dict[str, tuple[Point, ...]]:
    events = EventAccumulator(str(logs), size_guidance={"scalars": 0, "images": 1, "tensors": 1})
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: _one_a_step((event.step, event.value) for event in events.Scalars(tag)) for tag in tags}


def _one_a_step(points: Iterable[Point]) -> tuple[Point, ...]:
    """The last value of each step, in the order of steps; what is no number is left out."""
    latest = {step: value for step, value in points if math.isfinite(value)}
    return tuple(sorted(latest.items()))
