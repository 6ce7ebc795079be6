"""Runs side by side: what they are, their figures with the best of each row marked, and their means over seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

from dataset.better import mode
from heterolora.common.errors import UserError
from tools.reporting.run import Run, compared_options

ARROWS = {"min": "↓", "max": "↑", None: ""}


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

    @classmethod
    def compared(
        cls,
        label: str,
        values: Sequence[float | None],
        texts: Sequence[str],
        direction: str | None,
        subjects: Sequence[object],
    ) -> Row:
        """A row with the best value of each subject marked; `subjects` has one for each column.

        Equal values can all be best, but not if all values of the subject are equal.
        """
        known: dict[object, set[float]] = {}
        for subject, value in zip(subjects, values, strict=True):
            known.setdefault(subject, set()).update(() if value is None else (value,))
        picks: dict[str | None, Callable[[set[float]], float]] = {"min": min, "max": max}
        pick = picks.get(direction)
        best = {subject: pick(found) for subject, found in known.items() if pick is not None and len(found) > 1}
        pairs = zip(subjects, values, strict=True)
        marks = [value is not None and value == best.get(subject) for subject, value in pairs]
        return cls(label, ARROWS[direction], tuple(map(Cell, texts, marks)))


def facts(runs: Sequence[Run]) -> list[Row]:
    """The action, date, model and data of each run, and the options and package versions by which the runs differ."""
    named = {"model": "model", "load": "base", "dataset": "data set", "task": "task"}
    rows = [Row.of("action", *(run.action for run in runs)), Row.of("date", *(run.started for run in runs))]
    rows += [Row.of(label, *(run.shown(name) for run in runs)) for name, label in named.items()]
    for name, flag in compared_options().items():
        values = [run.shown(name) if run.uses(name) else "" for run in runs]
        if name not in named and len({value for value in values if value}) > 1:
            rows.append(Row.of(flag, *values))
    return [*rows, *_rows_and_versions(runs)]


def _rows_and_versions(runs: Sequence[Run]) -> Iterator[Row]:
    rows = [", ".join(f"{count:,} {split}" for split, count in run.rows.items()) for run in runs]
    if any(rows):
        yield Row.of("rows", *(text or "–" for text in rows))
    for package in dict.fromkeys(name for run in runs for name in run.versions):
        versions = [run.versions.get(package, "–") for run in runs]
        if len({*versions} - {"–"}) > 1:
            yield Row.of(package, *versions)


def comparison(runs: Sequence[Run]) -> dict[str, list[Row]]:
    """Heading → rows: the sizes of the runs, then the metrics of each split."""
    count = "{:,}".format
    sizes = (
        ("trainable parameters", [run.parameters.get("trainable") for run in runs], "min", count),
        ("of all", [parameter_share(run) for run in runs], None, percent),
        ("reallocations", [run.history and len(run.history.decisions) for run in runs], None, count),
    )
    rows = _rows(runs, sizes)
    if any(run.choice for run in runs):
        rows.insert(2, Row.of("elements on", *(run.choice.replace(" places on", "") or "–" for run in runs)))
    costs = (
        ("training time", [run.resources.get("train_seconds") for run in runs], "min", duration),
        ("median step", [run.resources.get("step_seconds") for run in runs], "min", duration),
        ("peak memory", [run.resources.get("peak_memory_bytes") for run in runs], "min", _gib),
    )
    parts = {"parameters": rows, "training": _rows(runs, costs)}
    return {heading: some for heading, some in parts.items() if some} | metrics([[run] for run in runs])


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


def _rows(runs: Sequence[Run], figures: Sequence[tuple]) -> list[Row]:
    """A row for each (label, values, direction, text of a value) with any value."""
    subjects = [run.subject for run in runs]
    return [
        Row.compared(label, values, ["–" if v is None else write(v) for v in values], direction, subjects)
        for label, values, direction, write in figures
        if any(value is not None for value in values)
    ]


def duration(seconds: float) -> str:
    """45.2 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def metrics(columns: Sequence[Sequence[Run]]) -> dict[str, list[Row]]:
    """Split → a row for each metric with the mean (lowest–highest) over the runs of each column.

    A column has no value if one of its runs has none, because a mean of the others would hide it.
    """
    splits: dict[str, dict[str, None]] = {}  # split → its metrics, in order
    for run in (run for runs in columns for run in runs):
        for split, figures in run.figures.items():
            splits.setdefault(split, {}).update(dict.fromkeys(figures))
    rows: dict[str, list[Row]] = {}
    for split, names in splits.items():
        for label, metric, kind in _by_kind(names, columns):
            found = [
                [run.figures.get(split, {}).get(metric) if kind in (None, run.loss) else None for run in runs]
                for runs in columns
            ]
            complete = [None if None in values else [v for v in values if v is not None] for values in found]
            means = [None if values is None else fmean(values) for values in complete]
            if any(mean is not None for mean in means):
                texts = ["–" if values is None else _mean_and_spread(values) for values in complete]
                subjects = [runs[0].subject for runs in columns]
                rows.setdefault(split, []).append(Row.compared(label, means, texts, better(metric), subjects))
    return rows


def _by_kind(names: Iterable[str], columns: Sequence[Sequence[Run]]) -> Iterator[tuple[str, str, str | None]]:
    """Label, metric and kind of loss of each row. Losses of different kinds have rows of their own."""
    kinds = dict.fromkeys(run.loss for runs in columns for run in runs)
    for name in names:
        if name == "loss" and len(kinds) > 1:
            yield from ((f"{name} ({kind})", name, kind) for kind in kinds)
        else:
            yield name, name, None


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}"


def better(metric: str) -> str | None:
    """Return `min` or `max`, or None if it is not a metric. The benchmarks' own metrics have `max`."""
    name = metric.rsplit("/", 1)[-1]
    if name == "loss":
        return "min"
    if metric.startswith("official/"):
        return "max"
    try:
        return mode(name)
    except UserError:
        return None


def parameter_share(run: Run) -> float | None:
    """Trainable parameters as a share of all."""
    total = run.parameters.get("total")
    return run.parameters["trainable"] / total if total else None


def percent(share: float) -> str:
    return f"{100 * share:.3g}%"


# ---- over seeds


@dataclass(frozen=True)
class Group:
    """Runs with final metrics that differ only in their seed, and the common start of their names."""

    name: str
    runs: tuple[Run, ...]


def groups(runs: Sequence[Run]) -> list[Group]:
    """Group all runs that have final metrics, in order of their first runs. Empty if no group has two seeds."""
    options = [name for name in compared_options() if name != "seed"]
    same: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.figures:
            same.setdefault((run.action, *(_shown(run, name) for name in options if run.uses(name))), []).append(run)
    split = [part for group in same.values() for part in _by_configuration(group)]
    if not any(len({run.option("seed") for run in group}) > 1 for group in split):
        return []
    return [Group(_common_start([run.name for run in group]) or group[0].name, tuple(group)) for group in split]


def _by_configuration(group: Sequence[Run]) -> list[list[Run]]:
    """Scores may choose other places for each seed. So configurations tell runs apart if one seed has several."""
    of_seed: dict[Any, set[str]] = {}
    for run in group:
        of_seed.setdefault(run.option("seed"), set()).add(run.configurations)
    if all(len(found) == 1 for found in of_seed.values()):
        return [list(group)]
    parts: dict[str, list[Run]] = {}
    for run in group:
        parts.setdefault(run.configurations, []).append(run)
    return list(parts.values())


def _shown(run: Run, name: str) -> str:
    """The value of an option. By default --seed also draws the rows of own data to hold out."""
    follows = name == "validation_seed" and run.option(name) == run.option("seed")
    return "" if follows else run.shown(name)


def _common_start(names: list[str]) -> str:
    return os.path.commonprefix(names).rstrip("-_./ ")  # noqa: RUF071 - names are compared letter by letter
