"""The pictures of a run: what each of them shows, and the name of its file. The report shows the same ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from heterolora.pictures.confusion import ConfusionMatrix
from heterolora.pictures.drawing import Picture, save, style
from heterolora.pictures.heat_map import HeatMap
from heterolora.pictures.line_chart import Line, LineChart
from heterolora.pictures.scatter import Scatter
from heterolora.pictures.timeline import Timeline

if TYPE_CHECKING:
    from heterolora.choosing.history import History
    from heterolora.choosing.scores import Scores
    from heterolora.elements.element import Place

ALLOCATION, CONFUSION_PICTURE = "allocation.png", "confusion.png"
FREQUENCY_PICTURE, TIMELINE_PICTURE = "reallocation_frequency.png", "reallocation_timeline.png"
CURVE_PICTURE = "reallocation_curve.png"
SCORES_PICTURE, STABILITY_PICTURE = "scores.png", "stability.png"


def of_scores(scores: Scores, on: Collection[str], budget: str) -> dict[str, Picture]:
    """File → picture. `on` are the keys of the elements that the budget, which is given in words, turns on."""
    test = scores.importance_test_name
    values: dict[Place, float] = {item.element: item.score for item in scores.scored}
    title = f"{test}: {scores.model} on {scores.dataset}"
    pictures: dict[str, Picture] = {SCORES_PICTURE: HeatMap(title, values, f"{test} score", on, f"on at {budget}")}
    if scores.stability is not None:
        halves: dict[Place, tuple[float, ...]] = {item.element: item.halves for item in scores.scored}
        title = f"{test}: two halves of the batches, rank correlation {scores.stability:.2f}"
        labels = ("score from every second batch", "score from the other batches")
        pictures[STABILITY_PICTURE] = Scatter(title, halves, labels, on)
    return pictures


def of_history(history: History, name: str) -> dict[str, Picture]:
    """File → picture of the reallocations of the run of this name. A search that shrinks also has its curve."""
    times, total = history.times_on(), len(history.decisions)
    often = {place: float(times[place.key]) for place in history.places}
    title = f"How often each element was on, of {total} reallocations"
    frequency = HeatMap(title, often, "times on", history.last_on(), "on after the last reallocation")
    pictures: dict[str, Picture] = {FREQUENCY_PICTURE: frequency, TIMELINE_PICTURE: Timeline(name, history)}
    if total > 1 and all(history.decisions[0].on):
        pictures[CURVE_PICTURE] = _curve(history)
    return pictures


def draw_history(history: History, folder: Path) -> None:
    """Draw the reallocations of the run in `folder` there, if matplotlib is installed."""
    if history.decisions and importlib.util.find_spec("matplotlib") is not None:
        draw(of_history(history, folder.name), folder)


def _curve(history: History) -> LineChart:
    """How many elements were on. Batches of several epochs have no common axis, so that the reallocations are it."""
    one_epoch = {decision.epoch for decision in history.decisions} == {0}
    at = [float(decision.step if one_epoch else k) for k, decision in enumerate(history.decisions)]
    on = [float(sum(decision.on)) for decision in history.decisions]
    falls = ((x, y) for x, before, after in zip(at[1:], on, on[1:], strict=False) for y in (before, after))
    lines = [Line("", style(0), [(at[0], on[0]), *falls])]
    return LineChart("Elements on", lines, "step of the epoch" if one_epoch else "reallocation", "elements on")


def of_ranks(ranks: Mapping[Place, float], blocks: int = 0) -> dict[str, HeatMap]:
    """File → picture of a result. The rank of an element that is off is 0. There are at least so many blocks."""
    on = {place.key for place, rank in ranks.items() if rank}
    marked = on if len(on) < len(ranks) else ()
    title = "Allocation: the rank of each element"
    return {ALLOCATION: HeatMap(title, ranks, "rank", marked, zero="off", blocks=blocks)} if ranks else {}


def of_classes(labels: Sequence[str], confusion: Mapping[str, Sequence[Sequence[int]]]) -> list[ConfusionMatrix]:
    """A picture for each split. `confusion` has a row for each true class."""
    return [ConfusionMatrix(f"Predictions on {split}", labels, counts) for split, counts in confusion.items()]


def draw(pictures: Mapping[str, Picture], folder: Path) -> list[Path]:
    """Draw each picture into its file."""
    for name, picture in pictures.items():
        save(folder / name, picture)
    return [folder / name for name in pictures]
