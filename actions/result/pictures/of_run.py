"""The pictures of a run: what each of them shows, and the name of its file. The report shows the same ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actions.result.pictures.confusion import ConfusionMatrix
from actions.result.pictures.drawing import Picture, save
from actions.result.pictures.heat_map import HeatMap
from actions.result.pictures.scatter import Scatter
from actions.result.pictures.timeline import Timeline

if TYPE_CHECKING:
    from heterolora.choosing.history import History
    from heterolora.choosing.scores import Scores
    from heterolora.elements.element import Place

ALLOCATION, CONFUSION_PICTURE = "allocation.png", "confusion.png"
FREQUENCY_PICTURE, TIMELINE_PICTURE = "reallocation_frequency.png", "reallocation_timeline.png"
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
    """File → picture of the reallocations of the run of this name."""
    times, total = history.times_on(), len(history.decisions)
    often = {place: float(times[place.key]) for place in history.places}
    title = f"How often each element was on, of {total} reallocations"
    frequency = HeatMap(title, often, "times on", history.last_on(), "on after the last reallocation")
    return {FREQUENCY_PICTURE: frequency, TIMELINE_PICTURE: Timeline(name, history)}


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
