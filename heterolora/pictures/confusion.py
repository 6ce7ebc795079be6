"""A confusion matrix: how often each class was predicted for the rows of each class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterolora.pictures.drawing import HEAT, INK, SURFACE, Tip

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELL = 44  # pixels
_MOST_NUMBERS = 20  # classes; more have colours alone
_LONGEST_NAME = 18  # letters
_DARK = 0.6  # numbers on darker colours are light


@dataclass(frozen=True)
class ConfusionMatrix:
    """`counts`: a row for each true class. The colour is the share of the rows of that class."""

    title: str
    labels: Sequence[str]
    counts: Sequence[Sequence[int]]
    note: str = "colours show the share of the rows of each true class"

    @property
    def size(self) -> tuple[float, float]:
        side = _CELL * min(len(self.labels), _MOST_NUMBERS)
        return side + 130, side + 110

    def draw(self, axes: Axes) -> None:
        from matplotlib.collections import PatchCollection
        from matplotlib.patches import Rectangle

        cells, colours = [], []
        for row, column, count, share in self._cells():
            cells.append(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94))
            colours.append((HEAT, 0.04 + 0.96 * share))
            if len(self.labels) <= _MOST_NUMBERS:
                ink = SURFACE if share > _DARK else INK
                axes.text(column, row, f"{count:,}", ha="center", va="center", fontsize=10, color=ink)
        axes.add_collection(PatchCollection(cells, facecolors=colours, edgecolors="none"))
        places, names = range(len(self.labels)), [_short(name) for name in self.labels]
        axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), xlabel="predicted", ylabel="true")
        axes.set_xticks(places, names, rotation=45 if max(map(len, names)) > 4 else 0)
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    def _cells(self) -> Iterator[tuple[int, int, int, float]]:
        for row, counts in enumerate(self.counts):
            for column, count in enumerate(counts):
                yield row, column, count, count / max(1, sum(counts))

    def tips(self) -> Iterator[Tip]:
        for row, column, count, share in self._cells():
            text = f"{self.labels[row]} predicted as {self.labels[column]}: {count:,} rows, {share:.1%}"
            yield Tip(text, (column - 0.5, row - 0.5), (column + 0.5, row + 0.5))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
