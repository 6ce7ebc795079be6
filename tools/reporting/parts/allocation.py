"""The ranks of the result of a run."""

from __future__ import annotations

from collections.abc import Iterator

from heterolora.choosing.words import degenerate
from heterolora.pictures.of_run import of_ranks
from tools.reporting.figures import Chart
from tools.reporting.parts.part import Part, Shared, sentence
from tools.reporting.run import Run


def allocation(run: Run, shared: Shared) -> Iterator[Part]:
    if not run.ranks:
        return
    pictures = [shared.with_values(picture, shared.ranks) for picture in of_ranks(run.ranks).values()]
    framed = "Framed elements are on: " if any(picture.marked for picture in pictures) else ""
    text = f"The rank of each element of the result. {framed}{run.choice}."
    yield Part("Allocation", text, sentence(degenerate([*run.ranks], run.elements_on)), tuple(map(Chart, pictures)))
