"""Makes one HTML page of the runs. The page needs no other file and no network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from heterolora.choosing.allocation import default_mode, tie_generator
from heterolora.choosing.ranks import choose
from heterolora.choosing.words import degenerate, never_changed, with_cost
from heterolora.elements.element import Place
from options.scoring import BUDGETS, ReallocationOptions
from tools.reporting.comparison import Row, better, comparison, facts, groups, metrics, parameter_share, percent
from tools.reporting.figures import COLOURS, Chart, Line, heat_map, line_chart, number, scatter, timeline
from tools.reporting.run import Run

BEST_SHOWN = 10  # elements in the list of best scores


class Tile(NamedTuple):
    """A key figure at the top: the figure, what it is, and a remark."""

    figure: str
    what: str
    more: str


@dataclass(frozen=True)
class Part:
    """A part of a run's section: a heading, a sentence, figures, and a table (its head and rows)."""

    heading: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    head: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    warning: str = ""


@dataclass(frozen=True)
class Maps:
    """What the block × place maps of a run share with those of other runs, so that they can be compared.

    Attributes:
        names: the columns, those of all runs of the same base.
        ranks: the ranks of all runs, which share their colours.
        scores: the scores by the same heuristic of all runs of the same base, data set and task; likewise.
    """

    names: tuple[str, ...]
    ranks: tuple[int, ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, run: Run, runs: Sequence[Run]) -> Maps:
        beside = [other for other in runs if other.shown("load") == run.shown("load")]
        names = {place.name for other in beside for place in other.places}
        ranks = tuple(rank for other in runs for rank in other.ranks.values())
        scores = tuple(
            item.score
            for other in beside
            if run.scores and other.scores and other.subject == run.subject
            if other.scores.importance_test_name == run.scores.importance_test_name
            for item in other.scores.scored
        )
        return cls(tuple(names), ranks, scores)


@dataclass(frozen=True)
class View:
    """A run as the template shows it."""

    run: Run
    colour: str
    anchor: str
    cards: tuple[Tile, ...]
    parts: tuple[Part, ...]


def render(runs: Sequence[Run]) -> str:
    """Returns the page."""
    coloured = zip(runs, itertools.cycle(COLOURS), strict=False)
    views = [
        View(run, colour, f"run-{position}", _cards(run), _parts(run, colour, Maps.of(run, runs)))
        for position, (run, colour) in enumerate(coloured, start=1)
    ]
    varied = groups(runs)
    return page_of(
        "page.html.j2",
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        views=views,
        figures={"": facts(runs), **comparison(runs)},
        groups=varied,
        spreads=metrics([group.runs for group in varied]),
        curves=curve_charts(views),
        several=len(runs) > 1,
    )


def page_of(template: str, **content: object) -> str:
    """Fills a template of this folder. `content` has a `title`, for `base.html.j2`, and what the template uses."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = (here / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template).render(style=style, plotly=get_plotlyjs(), **content)


# ---- curves


def curve_charts(views: Sequence[View]) -> list[Chart]:
    """A chart for each metric: training losses first, then other losses, other metrics, and learning rates."""

    def order(name: str) -> tuple[bool, bool, bool, str]:
        return (name.startswith("learning_rate"), not name.startswith("train/"), not name.endswith("/loss"), name)

    lines: dict[str, list[Line]] = {}
    for view in views:
        for name, points in view.run.curves.series.items():
            lines.setdefault(name, []).append(Line(view.run.name, view.colour, points))
    charts = []
    for name in sorted(lines, key=order):
        legend = tuple(
            (line.colour, line.label, number(line.points[-1][1]), _best_point(name, line.points))
            for line in lines[name]
        )
        charts.append(Chart(name, line_chart(lines[name], "optimizer step"), legend))
    return charts


def _best_point(name: str, points: Sequence[tuple[int, float]]) -> str:
    direction = better(name)
    if direction is None or name.startswith("train/") or len(points) < 2:
        return ""
    step, value = {"min": min, "max": max}[direction](points, key=lambda point: point[1])
    return f"{number(value)} at step {step:,}"


# ---- one run


def _cards(run: Run) -> tuple[Tile, ...]:
    cards = []
    if run.headline is not None:
        split, name = run.headline
        value = run.figures[split].get(name)
        which = f", of the {run.option('measured')} checkpoint" if run.uses("measured") else ""
        cards.append(Tile("–" if value is None else f"{value:.4f}", name, f"on {split}{which}"))
    if run.parameters:
        of_all = f"{percent(parameter_share(run))} of {run.parameters['total']:,}"
        cards.append(Tile(f"{run.parameters['trainable']:,}", "trainable parameters", of_all))
    if run.ranks:
        cards.append(Tile(f"{len(run.elements_on)} of {len(run.ranks)}", "elements on", run.choice.partition(", ")[2]))
    if run.scores is not None:
        about = f"by {run.scores.importance_test_name}, {run.scores.batches} batches of {run.scores.batch_size}"
        cards.append(Tile(f"{len(run.scores.scored)}", "elements scored", about))
    if run.history is not None:
        about = f"by {run.option('importance_test_name')}"
        cards.append(Tile(f"{len(run.history.decisions)}", "reallocations", about))
    return tuple(cards)


def _parts(run: Run, colour: str, maps: Maps) -> tuple[Part, ...]:
    parts = [_scores(run, maps)] if run.scores is not None else []
    if run.ranks:
        framed = frozenset() if len(run.elements_on) == len(run.ranks) else run.elements_on
        chart = heat_map(run.ranks, framed, _rank, "rank", maps.names, maps.ranks)
        warning = degenerate([*run.ranks], run.elements_on)
        text = f"The rank of each element of the result. {'Framed elements are on: ' if framed else ''}{run.choice}."
        parts.append(Part("Allocation", text, (chart,), warning=_sentence(warning)))
    if run.history is not None:
        parts += _reallocations(run, colour, maps)
    if run.parameters:
        parts.append(_parameters(run))
    return tuple(parts)


def _scores(run: Run, maps: Maps) -> Part:
    scores = run.scores
    options = ReallocationOptions(**{name: run.option(name) for name in BUDGETS})
    limit = replace(options.budget, step_time=scores.step_time)
    mode = run.option("dyrealloc_ags_mode") or default_mode(scores.has_shortcuts)
    chosen = choose(scores.scored, limit, mode, tie_generator(run.option("seed"), 0))
    by_place = {Place(item.element.layer, item.element.name): item.score for item in scores.scored}
    test = scores.importance_test_name
    chart = heat_map(by_place, chosen, _short, f"{test} score", maps.names, maps.scores)
    elements = [item.element for item in scores.scored]
    total = sum(by_place.values()) or 1.0
    best = sorted(by_place.items(), key=lambda item: -item[1])[:BEST_SHOWN]
    unit = {"share": "", "parameters": "parameters ", "time": "of the step time "}[options.budget.unit]
    text = (
        f"The {scores.importance_test_name} score of every element, from {scores.batches} batches of "
        f"{scores.batch_size} rows. The budget of {options.budget.amount:,} {unit}turns the framed {len(chosen)} on: "
        f"{with_cost(elements, [element for element in elements if element.key in chosen], scores.step_time)}."
    )
    warning = _sentence(degenerate(elements, chosen))
    charts = [chart]
    if scores.stability is not None:
        caption = f"Two halves of the batches: rank correlation {scores.stability:.2f}"
        halves = {item.element: item.halves for item in scores.scored}
        charts.append(scatter(halves, chosen, caption))
    rows = tuple(
        Row.of(place.key, number(score), f"{score / total:.1%}", "on" if place.key in chosen else "")
        for place, score in best
    )
    return Part("Scores", text, tuple(charts), ("element", "score", "of the sum", ""), rows, warning)


def _reallocations(run: Run, colour: str, maps: Maps) -> list[Part]:
    history = run.history
    times, churn = history.times_on(), history.churn()
    often = {place: times[place.key] for place in history.places}
    charts = [timeline(history)]
    if len(churn) > 2:
        line = Line(run.name, colour, tuple(enumerate(churn))[1:])
        caption = "Share of the elements that each reallocation switched"
        charts.append(Chart(caption, line_chart([line], "reallocation")))
    return [
        Part(
            "How often each element was on",
            f"After how many of {len(history.decisions)} reallocations. Framed elements are on after the last.",
            (heat_map(often, history.last_on(), str, "times on", maps.names, [len(history.decisions)]),),
            warning=_sentence(never_changed(history)),
        ),
        Part("When each element was on", "After each reallocation; dotted lines separate epochs.", tuple(charts)),
    ]


def _parameters(run: Run) -> Part:
    rows = []
    for row in (*run.parameters["rows"], {"kind": "all", "name": "", "ranks": [], **run.parameters}):
        on = f"{row['on']} of {row['on'] + row['off']}" if row["ranks"] else ""
        sizes = (f"{row['trainable']:,}", f"{row['total']:,}")
        rows.append(Row.of(row["kind"], row["name"], on, ", ".join(map(str, row["ranks"])), *sizes))
    head = ("kind", "name", "elements on", "rank", "trainable", "total")
    return Part("Parameters", head=head, rows=tuple(rows))


def _rank(rank: float) -> str:
    return str(rank) if rank else "off"


def _sentence(warning: str | None) -> str:
    """A warning as a sentence; empty for None."""
    return "" if warning is None else f"{warning[0].upper()}{warning[1:]}."


def _short(value: float) -> str:
    """Three digits in few characters: 0.123, 1.2e-7."""
    if value == 0 or 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(power)}"
