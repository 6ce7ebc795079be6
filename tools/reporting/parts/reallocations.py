"""How often and when each element of a run of `train-dyrealloc` was on, and several runs beside each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from heterolora.choosing.history import History
from heterolora.choosing.words import never_changed
from heterolora.pictures.drawing import style
from heterolora.pictures.heat_map import HeatMap
from heterolora.pictures.line_chart import Line, LineChart
from heterolora.pictures.of_run import of_history
from tools.reporting.comparison import Row
from tools.reporting.figures import Chart
from tools.reporting.parts.part import Part, Shared, sentence
from tools.reporting.run import Run


def reallocations(run: Run, shared: Shared) -> Iterator[Part]:
    if run.history is None:
        return
    history, total = run.history, len(run.history.decisions)
    pictures = [
        shared.with_values(picture, [total]) if isinstance(picture, HeatMap) else picture
        for picture in of_history(history, f"When each element of {run.name} was on").values()
    ]
    if len(churn := history.churn()) > 2:
        title = "Share of the elements that each reallocation switched"
        line = Line(run.name, style(0), tuple(enumerate(churn))[1:])
        pictures.append(LineChart(title, [line], "reallocation"))
    text = f"After how many of {total} reallocations each element was on, and after which."
    yield Part("Reallocations", text, sentence(never_changed(history)), tuple(map(Chart, pictures)))


def beside_each_other(runs: Sequence[Run]) -> Iterator[Part]:
    histories = {run.name: run.history for run in runs if run.history is not None}
    if len({frozenset(history.places) for history in histories.values()}) == 1 < len(histories):
        yield compared(histories)


def compared(histories: Mapping[str, History]) -> Part:
    """How much each run switched, and how much of its final choice it has in common with the first run."""
    head = ("run", "reallocations", "on", "of", "never on", "mean churn", "final choice shared with the first")
    first = next(iter(histories.values())).last_on()
    rows = []
    for name, past in histories.items():
        on = past.last_on()
        never = sum(times == 0 for times in past.times_on().values())
        shared = len(on & first) / max(len(on | first), 1)
        counts = (len(past.decisions), len(on), len(past.places), never)
        churn = mean(past.churn()[1:] or (0.0,))  # the first reallocation switches nothing
        rows.append(Row.of(name, *map(str, counts), f"{churn:.1%}", f"{shared:.1%}"))
    return Part("Choices of the searches", head=head, rows=tuple(rows))
