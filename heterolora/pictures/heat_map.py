"""Blocks × names: the value of each element as a colour and as a number."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterolora.elements.element import Place, order_of
from heterolora.pictures.drawing import FRAME, HEAT, INK, SURFACE, WIDE_SPAN, Tip, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT = 60, 28  # pixels of a cell
_PALEST = 0.05  # colour of the value 0, so that it differs from no place; the largest value has 1
_DARK = 0.7  # numbers on darker colours are light
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class HeatMap:
    """The values are finite and not negative; a place without a value stays empty.

    Whole numbers are written as they are, others with three digits and a common power of ten, which the note names.

    Attributes:
        label: the name of the values.
        marked: keys of the places that get a frame.
        mark: the meaning of the frame.
        zero: how the value 0 is written.
        blocks: the least number of rows.
        names: columns that it has in any case; maps that are compared have the same.
        beside: values of the maps that share its colours.
    """

    title: str
    values: Mapping[Place, float]
    label: str = ""
    marked: Collection[str] = ()
    mark: str = "on"
    zero: str = "0"
    blocks: int = 0
    names: Collection[str] = ()
    beside: Collection[float] = ()

    @property
    def rows(self) -> list[int]:
        return sorted({place.layer for place in self.values} | set(range(self.blocks)))

    @property
    def columns(self) -> list[str]:
        return sorted({place.name for place in self.values} | {*self.names}, key=order_of)

    @property
    def size(self) -> tuple[float, float]:
        return _WIDTH * len(self.columns) + 50, _HEIGHT * len(self.rows) + 40

    @property
    def note(self) -> str:
        power = _common_power(self.values.values())
        parts = (
            f"{self.label}, numbers × 10{str(power).translate(_RAISED)}" if power else self.label,
            "colours show the logarithm" if _wide([*self.values.values(), *self.beside]) else "",
            f"framed: {self.mark}" if self.marked else "",
        )
        return "; ".join(part for part in parts if part)

    def draw(self, axes: Axes) -> None:
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        cells, colours, frames = [], [], []
        power, shade = _common_power(self.values.values()), _shades([*self.values.values(), *self.beside])
        for place, (column, row) in self._cells().items():
            value, marked = self.values[place], place.key in self.marked
            corner = (column - 0.47, row - 0.44)
            share = shade(value)
            cells.append(Rectangle(corner, 0.94, 0.88))
            colours.append((HEAT, share))
            frames += [Rectangle(corner, 0.94, 0.88)] if marked else []
            text = self.zero if value == 0 else _in_few_digits(value / 10.0**power)
            ink, weight = SURFACE if share > _DARK else INK, "bold" if marked else "normal"
            shown = axes.text(column, row, text, ha="center", va="center", fontsize=10, color=ink, fontweight=weight)
            shown.set_in_layout(False)  # it lies inside the axes, and measuring it takes time
        axes.add_collection(PatchCollection(cells, facecolors=colours, edgecolors="none", clip_on=False))
        axes.add_collection(PatchCollection(frames, facecolors="none", edgecolors=FRAME, linewidths=2, clip_on=False))
        axes.set(xlim=(-0.5, len(self.columns) - 0.5), ylim=(len(self.rows) - 0.5, -0.5), ylabel="block")
        axes.set_xticks(range(len(self.columns)), self.columns)
        axes.set_yticks(range(len(self.rows)), [Place(row, "").block for row in self.rows])
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.spines[:].set_visible(False)

    def tips(self) -> Iterator[Tip]:
        for place, (column, row) in self._cells().items():
            text = f"{place.key}: {self.label} {number(self.values[place])}"
            on = ", on" if place.key in self.marked else ""
            yield Tip(text + on, (column - 0.5, row - 0.5), (column + 0.5, row + 0.5))

    def _cells(self) -> dict[Place, tuple[int, int]]:
        """Place → column and row."""
        columns = {name: column for column, name in enumerate(self.columns)}
        rows = {layer: row for row, layer in enumerate(self.rows)}
        return {place: (columns[place.name], rows[place.layer]) for place in self.values}


def _wide(values: Collection[float]) -> bool:
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) > WIDE_SPAN


def _shades(values: Collection[float]) -> Callable[[float], float]:
    """A function from value to colour, from 0 to 1: linear from 0, or logarithmic if small values would look alike."""
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1.0), max(positive, default=1.0)

    def relative(value: float) -> float:
        if not _wide(values):
            return value / high
        return 0.06 + 0.94 * math.log(value / low) / math.log(high / low) if value > 0 else 0.0

    return lambda value: _PALEST + (1 - _PALEST) * relative(value)


def _common_power(values: Collection[float]) -> int:
    """The power of ten of the largest value; 0 if the values are readable without it."""
    highest = max(values)
    if highest == 0 or (highest < 1e4 and all(value == round(value) for value in values)):
        return 0
    power = math.floor(math.log10(highest))
    return 0 if -1 <= power <= 2 else power


def _in_few_digits(value: float) -> str:
    """0.123, 1.23, 12.3, 1234; very small values with an exponent, such as 3e-7."""
    if value == round(value):
        return f"{value:.0f}"
    if value < 0.001:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.3g}"
