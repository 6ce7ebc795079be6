"""Two values of every element against each other."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterolora.elements.element import Place
from heterolora.pictures.drawing import FRAME, SOFT, WIDE_SPAN, Tip, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Scatter:
    """Axes are logarithmic if the values span a wide range. On the dotted line both values are equal.

    Attributes:
        labels: the names of the two values.
        marked: keys of the places that are on.
    """

    title: str
    points: Mapping[Place, tuple[float, ...]]
    labels: tuple[str, str]
    marked: Collection[str]
    note: str = "dots: on; crosses: off; on the dotted line both values are equal"
    size: tuple[float, float] = (400, 340)

    def draw(self, axes: Axes) -> None:
        values = [value for point in self.points.values() for value in point]
        low, high = min(values), max(values)
        for marker, colour, on in (("x", SOFT, False), ("o", FRAME, True)):
            pairs = [point for place, point in self.points.items() if (place.key in self.marked) == on]
            if pairs:
                x, y = zip(*pairs, strict=True)
                axes.plot(x, y, linestyle="none", marker=marker, markersize=5, color=colour)
        if low > 0 and high / low > WIDE_SPAN:
            axes.set(xscale="log", yscale="log")
        axes.plot((low, high), (low, high), color=SOFT, linewidth=1, linestyle="dotted", zorder=0)
        axes.set(xlabel=self.labels[0], ylabel=self.labels[1])

    def tips(self) -> Iterator[Tip]:
        for place, (x, y) in self.points.items():
            on = "on" if place.key in self.marked else "off"
            yield Tip(f"{place.key}: {number(x)} and {number(y)}, {on}", (x, y), (x, y))
