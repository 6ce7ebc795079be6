"""Estimates with their intervals, one below the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterolora.pictures.drawing import SOFT, Style, Tip, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Row:
    name: str
    style: Style
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Intervals:
    """The dotted line marks 0."""

    title: str
    rows: Sequence[Row]
    label: str
    note: str = ""

    @property
    def size(self) -> tuple[float, float]:
        return 400, 60 + 34 * len(self.rows)

    def draw(self, axes: Axes) -> None:
        for place, row in enumerate(self.rows):
            axes.hlines(place, row.low, row.high, color=row.style.colour, linewidth=2)
            axes.plot(row.estimate, place, color=row.style.colour, marker=row.style.marker, markersize=8)
        axes.axvline(0, color=SOFT, linewidth=1.5, linestyle="dotted")
        axes.set(xlabel=self.label, ylim=(len(self.rows) - 0.5, -0.5))
        axes.set_yticks(range(len(self.rows)), [row.name for row in self.rows])

    def tips(self) -> Iterator[Tip]:
        for place, row in enumerate(self.rows):
            text = f"{row.name}: {number(row.estimate)} ({number(row.low)} to {number(row.high)})"
            yield Tip(text, (row.low, place), (row.high, place))
