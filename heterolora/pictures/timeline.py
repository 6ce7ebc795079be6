"""Elements × reallocations: which elements were on after which."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterolora.pictures.drawing import HEAT, LINE, SOFT, Tip, spans

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from heterolora.choosing.history import History

_MOST_NAMED = 130  # rows; with more of them, the labels name blocks
_MOST_TICKS = 10


@dataclass(frozen=True)
class Timeline:
    """The history has at least one reallocation. Lines separate blocks and epochs."""

    title: str
    history: History
    note: str = "coloured: on after the reallocation; dotted: a new epoch"

    @property
    def dense(self) -> bool:
        return len(self.history.places) > _MOST_NAMED

    @property
    def size(self) -> tuple[float, float]:
        rows = len(self.history.places) * (8 if self.dense else 15)
        return min(max(400, 200 + 7 * len(self.history.decisions)), 1000), rows + 70

    def draw(self, axes: Axes) -> None:
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        places, decisions = self.history.places, self.history.decisions
        corners = [
            (x, y)
            for row, on in enumerate(self._rows_on())
            for first, last in on
            for x, y in (
                *((first - 0.5, row - 0.42), (last + 0.5, row - 0.42), (last + 0.5, row + 0.42)),
                *((first - 0.5, row + 0.42), (first - 0.5, row - 0.42)),
            )
        ]
        codes = [Path.MOVETO, *3 * [Path.LINETO], Path.CLOSEPOLY] * (len(corners) // 5)
        axes.add_patch(
            PathPatch(Path(corners or [(0, 0)], codes or None), facecolor=HEAT, edgecolor="none", clip_on=False)
        )
        first_of_block = [i for i, place in enumerate(places) if i == 0 or places[i - 1].layer != place.layer]
        for row in first_of_block[1:]:
            axes.axhline(row - 0.5, color=LINE, linewidth=1)
        for k in range(1, len(decisions)):
            if decisions[k].epoch != decisions[k - 1].epoch:
                axes.axvline(k - 0.5, color=SOFT, linewidth=1, linestyle="dotted")
        axes.set(xlim=(-0.5, len(decisions) - 0.5), ylim=(len(places) - 0.5, -0.5))
        every = -(-len(decisions) // _MOST_TICKS)
        steps = range(0, len(decisions), every)
        axes.set_xticks(steps, [f"{k}\n{decisions[k].epoch}:{decisions[k].step}" for k in steps], fontsize=9)
        axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
        axes.set_xlabel("reallocation, at epoch:batch")
        axes.xaxis.set_label_position("top")
        if self.dense:
            axes.set_yticks(first_of_block, [places[row].table.replace("_", " ") for row in first_of_block], fontsize=9)
        else:
            times = self.history.times_on()
            labels = [f"{place.key}  {times[place.key]} of {len(decisions)}" for place in places]
            axes.set_yticks(range(len(places)), labels, fontsize=9)

    def tips(self) -> Iterator[Tip]:
        """One for each row, because one for each cell would make a page of several megabytes."""
        decisions, times = self.history.decisions, self.history.times_on()
        for row, (place, on) in enumerate(zip(self.history.places, self._rows_on(), strict=True)):
            when = ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in on)
            text = f"{place.key}: on after {times[place.key]} of {len(decisions)} reallocations"
            yield Tip(f"{text}: {when}" if when else text, (-0.5, row - 0.5), (len(decisions) - 0.5, row + 0.5))

    def _rows_on(self) -> list[list[tuple[int, int]]]:
        """For each place, the first and the last of the reallocations after which it was on, without a gap."""
        every = [decision.on for decision in self.history.decisions]
        return [spans(on) for on in zip(*every, strict=True)]
