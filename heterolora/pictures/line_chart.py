"""Lines over a common axis, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterolora.pictures.drawing import LINE, SOFT, Style, Tip, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 240  # of a line; a longer line shows means of neighbouring points
_MOST_TIPS = 40  # of a line
_MOST_MARKERS = 12


@dataclass(frozen=True)
class Line:
    """(x, y) points in the order of x, at least one.

    Attributes:
        low, high: the ends of an interval around each point, or empty.
        names: of the points, written above them, or empty.
        joined: whether a line joins the points. Intervals are a band around a line, and bars at points alone.
    """

    label: str
    style: Style
    points: Sequence[tuple[float, float]]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    names: Sequence[str] = ()
    joined: bool = True


@dataclass(frozen=True)
class LineChart:
    """The reader finds the names of the lines in a legend beside the chart.

    Attributes:
        logarithmic: whether the x axis is.
        ticks: of the x axis; chosen if there are none.
        front: points that a dotted line joins.
    """

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str = ""
    logarithmic: bool = False
    ticks: Sequence[float] = ()
    front: Sequence[tuple[float, float]] = ()
    note: str = ""
    size: tuple[float, float] = (360, 230)

    def draw(self, axes: Axes) -> None:
        if self.logarithmic:
            axes.set_xscale("log")
        for line in self.lines:
            _draw(line, axes)
        if self.front:
            axes.plot(*zip(*self.front, strict=True), color=SOFT, linewidth=1, linestyle="dotted", zorder=0)
        axes.grid(axis="y", color=LINE)
        axes.set(xlabel=self.x_label, ylabel=self.y_label)
        self._ticks(axes)

    def _ticks(self, axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

        shown = FuncFormatter(lambda value, _: number(value))
        if self.ticks:
            axes.set_xticks(self.ticks, [number(tick) for tick in self.ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        elif not self.logarithmic:
            whole = all(float(x).is_integer() for line in self.lines for x, _ in line.points)
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
            axes.xaxis.set_major_formatter(shown)
        axes.yaxis.set_major_formatter(shown)
        values = [y for line in self.lines for y in (*(y for _, y in line.points), *line.low, *line.high)]
        low, high = min(values), max(values)
        if high - low <= 1e-6 * max(abs(low), abs(high)):  # several ticks would have the same few digits
            margin = abs(low) / 2 or 1.0
            axes.set_ylim(low - margin, high + margin)
            axes.set_yticks([values[0]], [number(values[0])])

    def tips(self) -> Iterator[Tip]:
        for line in self.lines:
            points = thinned(line.points)
            every = -(-len(points) // _MOST_TIPS)
            whose = f"{line.label}: " if line.label else ""
            for x, y in (point for point in points[::every] if math.isfinite(point[1])):
                yield Tip(f"{whose}{number(y)} at {self.x_label} {number(x)}", (x, y), (x, y))


def _draw(line: Line, axes: Axes) -> None:
    style, points = line.style, thinned(line.points)
    x, y = zip(*points, strict=True)
    dashes = style.dashes if line.joined else "none"
    every = -(-len(points) // _MOST_MARKERS)
    axes.plot(x, y, color=style.colour, linestyle=dashes, marker=style.marker, markersize=5, markevery=every)
    for name, point in zip(line.names, points, strict=False):
        axes.annotate(name, point, (0, 6), textcoords="offset points", ha="center", fontsize=10, color=SOFT)
    if line.low and line.joined:
        low, high = ([end for _, end in _with_x(line, ends)] for ends in (line.low, line.high))
        axes.fill_between(x, low, high, color=style.colour, alpha=0.2, linewidth=0)
    elif line.low:
        axes.vlines(x, line.low, line.high, color=style.colour)


def _with_x(line: Line, values: Sequence[float]) -> Sequence[tuple[float, float]]:
    return thinned([(x, value) for (x, _), value in zip(line.points, values, strict=True)])


def thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    """At most `MOST_POINTS` points: the means of equally many neighbours."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
