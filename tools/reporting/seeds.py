"""Runs that differ by their seed alone: what their figures are on average, and how far they spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from actions.options import declared
from tools.reporting.comparison import OF_A_PLACE, Row, as_text, better, row_of
from tools.reporting.run import Figures, Run


@dataclass(frozen=True)
class Group:
    """Runs of the same action and options but for the seed.

    Attributes:
        name: what the runs' names begin with, or the first one's.
        runs: with figures, in the order given.
    """

    name: str
    runs: tuple[Run, ...]


def groups(runs: Sequence[Run]) -> list[Group]:
    """All runs that have figures, grouped, in order of the first of each group; none where no seed was varied."""
    same: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.figures:
            same.setdefault(_all_but_seed(run), []).append(run)
    if not any(len({run.option("seed") for run in group}) > 1 for group in same.values()):
        return []
    return [Group(_name(group), tuple(group)) for group in same.values()]


def _all_but_seed(run: Run) -> tuple[str, ...]:
    left_out = {"seed", *OF_A_PLACE}
    return (run.action, *(as_text(run.option(name)) for name in declared() if name not in left_out))


def _name(group: Sequence[Run]) -> str:
    names = [run.name for run in group]
    lowest, highest = min(names), max(names)  # what these two begin with, all others do
    alike = next((i for i, (a, b) in enumerate(zip(lowest, highest, strict=False)) if a != b), len(lowest))
    return lowest[:alike].rstrip("-_./ ") or names[0]


def spreads(found: Sequence[Group]) -> dict[str, list[Row]]:
    """Split → a row for each metric, with mean (lowest–highest) of each group; the best mean is marked."""
    figures = [run.figures for group in found for run in group.runs]
    rows = {}
    for split in dict.fromkeys(split for some in figures for split in some):
        metrics = dict.fromkeys(metric for some in figures for metric in some.get(split, ()))
        rows[split] = [row for metric in metrics if (row := _row(split, metric, found)) is not None]
    return {split: some for split, some in rows.items() if some}


def _row(split: str, metric: str, found: Sequence[Group]) -> Row | None:
    values = [_values(split, metric, [run.figures for run in group.runs]) for group in found]
    row = row_of(metric, [fmean(some) if some else None for some in values], better(metric), "{:.4f}".format)
    if row is None:
        return None
    cells = (
        replace(cell, text=f"{cell.text} ({min(some):.4f}–{max(some):.4f})") if len(some) > 1 else cell
        for cell, some in zip(row.cells, values, strict=True)
    )
    return replace(row, cells=tuple(cells))


def _values(split: str, metric: str, figures: Sequence[Figures]) -> list[float]:
    """Of all runs of a group; none if one of them has no number there: a mean of the rest would hide it."""
    values = [some.get(split, {}).get(metric) for some in figures]
    return [] if None in values else values
