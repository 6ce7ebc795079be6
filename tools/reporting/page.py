"""Makes one HTML page of the runs. The page needs no other file and no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from heterolora.pictures.drawing import Style, number, style
from heterolora.pictures.line_chart import Line, LineChart
from options.actions import as_started
from tools.reporting.comparison import better, comparison, facts, groups, metrics, parameter_share, percent
from tools.reporting.figures import Chart, Key
from tools.reporting.parts.agreement import agreement
from tools.reporting.parts.allocation import allocation
from tools.reporting.parts.classes import classes
from tools.reporting.parts.parameters import parameters
from tools.reporting.parts.part import Part, Shared
from tools.reporting.parts.reallocations import beside_each_other, reallocations
from tools.reporting.parts.scores import scores
from tools.reporting.run import Run

MARK = "<title>HeteroLoRA: "  # in the head of every page
OF_A_RUN: tuple[Callable[[Run, Shared], Iterator[Part]], ...] = (scores, allocation, reallocations, classes, parameters)
OF_SEVERAL: tuple[Callable[[Sequence[Run]], Iterator[Part]], ...] = (agreement, beside_each_other)


class Tile(NamedTuple):
    """A key figure at the top: the figure, what it is, and a remark."""

    figure: str
    what: str
    more: str


@dataclass(frozen=True)
class View:
    """A run as the template shows it."""

    run: Run
    style: Style
    anchor: str
    tiles: tuple[Tile, ...]
    parts: tuple[Part, ...]

    @classmethod
    def of(cls, run: Run, position: int, runs: Sequence[Run]) -> View:
        shared = Shared.by(run, runs)
        parts = tuple(part for parts_of in OF_A_RUN for part in parts_of(run, shared))
        return cls(run, style(position), f"run-{position + 1}", tuple(_tiles(run)), parts)


def render(runs: Sequence[Run]) -> str:
    """Return the page."""
    views = [View.of(run, position, runs) for position, run in enumerate(runs)]
    varied = groups(runs)
    return page_of(
        "page.html.j2",
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        views=views,
        figures={"": facts(runs), **comparison(runs)},
        groups=varied,
        spreads=metrics([group.runs for group in varied]),
        across=[part for parts_of in OF_SEVERAL for part in parts_of(runs)],
        curves=curve_charts(views),
        several=len(runs) > 1,
    )


def page_of(template: str, **content: object) -> str:
    """Fill a template of this folder. `content` has a `title`, for `base.html.j2`, and what the template uses."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(template).render(style=(here / "style.css").read_text(encoding="utf-8"), **content)
    return as_started(page)


def curve_charts(views: Sequence[View]) -> list[Chart]:
    """A chart for each metric: training losses first, then other losses, other metrics, and learning rates.

    Losses of different kinds have charts of their own.
    """

    def order(key: tuple[str, str]) -> tuple[bool, bool, bool, str, str]:
        name, kind = key
        return (name.startswith("learning_rate"), not name.startswith("train/"), not name.endswith("/loss"), name, kind)

    several = len({view.run.loss for view in views}) > 1
    lines: dict[tuple[str, str], list[Line]] = {}
    for view in views:
        for name, points in view.run.curves.series.items():
            kind = f" ({view.run.loss})" if several and name.endswith("/loss") else ""
            lines.setdefault((name, kind), []).append(Line(view.run.name, view.style, points))
    return [
        Chart(LineChart("".join(key), lines[key], "optimizer step"), tuple(_key(key[0], line) for line in lines[key]))
        for key in sorted(lines, key=order)
    ]


def _key(name: str, line: Line) -> Key:
    direction, best = better(name), ""
    if direction is not None and not name.startswith("train/") and len(line.points) > 1:
        step, value = {"min": min, "max": max}[direction](line.points, key=lambda point: point[1])
        best = f"{number(value)} at step {step:,}"
    return Key(line.style, line.label, number(line.points[-1][1]), best)


def _tiles(run: Run) -> Iterator[Tile]:
    if run.headline is not None:
        split, name = run.headline
        value = run.figures[split].get(name)
        which = f", of the {run.option('measured')} checkpoint" if run.uses("measured") else ""
        yield Tile("–" if value is None else f"{value:.4f}", name, f"on {split}{which}")
    if (share := parameter_share(run)) is not None:
        of_all = f"{percent(share)} of {run.parameters['total']:,}"
        yield Tile(f"{run.parameters['trainable']:,}", "trainable parameters", of_all)
    if run.ranks:
        yield Tile(f"{len(run.elements_on)} of {len(run.ranks)}", "elements on", run.choice.partition(", ")[2])
    if run.scores is not None:
        about = f"by {run.scores.importance_test_name}, {run.scores.batches} batches of {run.scores.batch_size}"
        yield Tile(f"{len(run.scores.scored)}", "elements scored", about)
    if run.history is not None:
        about = f"by {run.option('importance_test_name')}"
        yield Tile(f"{len(run.history.decisions)}", "reallocations", about)
