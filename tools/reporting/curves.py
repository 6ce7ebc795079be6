"""The curves of a run, from the files that its logger wrote."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heterolora.common.outside import reading

Point = tuple[int, float]

_NO_CURVES = ("epoch", "final/")  # logged with the curves: a count, and the metrics of the best weights


@dataclass(frozen=True)
class Curves:
    """The logged series: name → (optimizer step, value) in the order of steps. `missing` says why there are none.

    The first step is 1, as in the terminal. Loggers call it 0.
    """

    series: Mapping[str, tuple[Point, ...]]
    missing: str = ""


def read_curves(logs: Path, logger: str) -> Curves:
    """Read the curves in a run's `logs` folder, which may be missing. `logger` is the run's `--logger`.

    Raises UserError if a file cannot be read.
    """
    found: dict[str, list[Point]] = {}
    if (logs / "metrics.csv").is_file():
        found = _from_csv(logs / "metrics.csv")
    if any(logs.glob("events.out.tfevents.*")):  # too, if a resumed run has another logger
        for name, points in _from_events(logs).items():
            found.setdefault(name, []).extend(points)
    kept = {name: _by_step(points) for name, points in sorted(found.items()) if not name.startswith(_NO_CURVES)}
    trackers = {"wandb": "Weights & Biases", "mlflow": "MLflow", "trackio": "Trackio"}
    missing = "Nothing is logged yet."
    if logger == "none":
        missing = "The run used --logger none: it kept no curves."
    elif logger in trackers:
        missing = f"The run's curves are with {trackers[logger]}, which this report does not read."
    return Curves(kept, "" if kept else missing)


def _from_csv(path: Path) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    wrong = "expected the file of a CSV logger"
    with reading("the curves", path, wrong), path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, []).append((_step(row["step"]), float(value)))
    return found


def _from_events(logs: Path) -> dict[str, list[Point]]:
    with reading("the curves", logs, "expected the files of a TensorBoard logger"):
        events = EventAccumulator(str(logs), size_guidance={"scalars": 0, "images": 1, "tensors": 1}).Reload()
        return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _step(text: str) -> int:
    if not 0 <= (step := int(text)) < 2**53:
        raise ValueError(f"step is {step}")
    return step


def _by_step(points: Iterable[Point]) -> tuple[Point, ...]:
    """The last finite value of each step, in the order of steps."""
    return tuple(sorted({step + 1: value for step, value in points if math.isfinite(value)}.items()))
