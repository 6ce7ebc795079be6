"""Runs that differ by their seed alone: what their figures are on average, and how far they spread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from actions.options import declared
from tools.reporting.comparison import OF_A_PLACE, Row, as_text, better, by_split, row_of
from tools.reporting.run import Run


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

    def row(split: str, metric: str) -> Row | None:
        return row_of(metric, [_values(split, metric, group) for group in found], better(metric), _text, fmean)

    return by_split([run for group in found for run in group.runs], row)


def _values(split: str, metric: str, group: Group) -> list[float] | None:
    """Of all runs of a group; `None` if one of them has no number there: a mean of the rest would hide it."""
    values = [run.figures.get(split, {}).get(metric) for run in group.runs]
    return None if None in values else values


def _text(values: list[float]) -> str:
    spread = f" ({min(values):.4f}–{max(values):.4f})" if len(values) > 1 else ""
    return f"{fmean(values):.4f}{spread}"
