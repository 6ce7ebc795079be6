"""What a part of a report consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from heterolora.pictures.heat_map import HeatMap
from tools.reporting.comparison import Row
from tools.reporting.figures import Chart
from tools.reporting.run import Run


@dataclass(frozen=True)
class Part:
    """A heading, a sentence, a warning, charts, and a table (its head and rows)."""

    heading: str
    text: str = ""
    warning: str = ""
    charts: tuple[Chart, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()

    def as_table(self) -> Table:
        """The table for a terminal."""
        table = Table(*self.head)
        for row in self.rows:
            table.add_row(row.label, *(cell.text for cell in row.cells))
        return table


@dataclass(frozen=True)
class Shared:
    """What the heat maps of a run share with those of other runs, so that they can be compared.

    Attributes:
        names: the columns, those of all runs of the same base.
        ranks: the ranks of all runs, which share their colours.
        scores: the scores by the same heuristic of all runs of the same base, data set and task; likewise.
    """

    names: frozenset[str]
    ranks: tuple[float, ...]
    scores: tuple[float, ...]

    @classmethod
    def by(cls, run: Run, runs: Sequence[Run]) -> Shared:
        beside = [other for other in runs if other.shown("load") == run.shown("load")]
        names = frozenset(place.name for other in beside for place in other.places)
        ranks = tuple(rank for other in runs for rank in other.ranks.values())
        scores = tuple(
            item.score
            for other in beside
            if run.scores and other.scores and other.subject == run.subject
            if other.scores.importance_test_name == run.scores.importance_test_name
            for item in other.scores.scored
        )
        return cls(names, ranks, scores)

    def with_values(self, picture: HeatMap, beside: Sequence[float]) -> HeatMap:
        return replace(picture, names=self.names, beside=beside)


def sentence(warning: str | None) -> str:
    """A warning as a sentence; empty for None."""
    return "" if warning is None else f"{warning[0].upper()}{warning[1:]}."
