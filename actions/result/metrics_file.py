"""Reads the metrics of a run. It imports nothing that computes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actions.run.run_folder import METRICS
from dataset import registry
from heterolora.common.checks import TEXT, Condition, number, whole_number
from heterolora.common.outside import read_json


def _table_of(valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a table whose values are all valid."""
    return lambda value: isinstance(value, Mapping) and all(map(TEXT.valid, value)) and all(map(valid, value.values()))


_FINITE = number(lambda value: abs(value) < 1e300, "a number")
_METRICS = Condition(
    _table_of(_table_of(lambda value: value is None or _FINITE.valid(value))), "for each split a number for each metric"
)
_RESOURCES = Condition(_table_of(lambda value: value is None or _FINITE.valid(value)), "a number for each resource")
_ROWS = Condition(_table_of(whole_number(0).valid), "a number of rows for each split")
_WRITTEN = "expected the file that the run wrote"
_VERSIONS = Condition(_table_of(TEXT.valid), "a version for each package")


def read_metrics(folder: Path) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """The metrics and the package versions in a run's `metrics.json`; empty if the file is missing.

    Raises UserError if the file cannot be read, or a value has the wrong type.
    """
    path = folder / METRICS
    if not path.is_file():
        return {}, {}
    values = read_json(path, "the metrics file", _WRITTEN)
    metrics = _METRICS.check(str(path), "metrics", values.get("metrics", {}))
    return metrics, _VERSIONS.check(str(path), "versions", values.get("versions", {}))


def read_row_counts(folder: Path) -> dict[str, int]:
    """Split → rows, as `metrics.json` has them. Empty if they are not known."""
    path = folder / METRICS
    values = read_json(path, "the metrics file", _WRITTEN).get("rows", {}) if path.is_file() else {}
    return dict(_ROWS.check(str(path), "rows", values))


def headline(
    figures: Mapping[str, Mapping[str, float | None]], dataset: str, metric: str | None
) -> tuple[str, str] | None:
    """Split and name of the metric that selected the best checkpoint. None if nothing was measured.

    `dataset`, `metric`: the options of the run.
    """
    if not figures:
        return None
    split, row = next(iter(figures.items()))
    data_set = registry.specs().get(dataset)
    measured = [name for name in row if name != "loss"]
    names = (*([metric] if metric else ()), *(data_set.metrics if data_set else ()), *measured)
    return split, next((name for name in names if name in row), "loss")


def read_resources(folder: Path) -> dict[str, float]:
    """What training took, as `metrics.json` has it: seconds and bytes. Empty if it is not known."""
    path = folder / METRICS
    values = read_json(path, "the metrics file", _WRITTEN).get("resources", {}) if path.is_file() else {}
    found = _RESOURCES.check(str(path), "resources", values)
    return {name: value for name, value in found.items() if value is not None}
