"""Charts as inline SVG. Colours are CSS classes, so that they follow the reader's light or dark theme."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from heterolora.history import History
from tools.reporting.curves import Point

MOST_POINTS = 240  # of a line; more are drawn as means of neighbours
MOST_DOTS = 40  # points that are marked one by one
_WIDTH, _HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 46


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: of the run.
        colour: index of its colour.
        points: (x, y) in the order of x.
    """

    label: str
    colour: int
    points: tuple[Point, ...]


def line_chart(title: str, lines: Sequence[Line], x_label: str) -> Markup:
    """Lines over a common scale, with ticks at round numbers.

    Args:
        title: says what is shown to those who can't see it.
        lines: at least one, each with at least one point.
        x_label: below the axis.
    """
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks = _ticks(min(xs), max(xs), 6, whole=True)
    y_ticks = _ticks(min(ys), max(ys), 5)
    low, high = min(*y_ticks, *ys), max(*y_ticks, *ys)
    x_at = _scale(min(xs), max(xs), _LEFT + 6, _WIDTH - _RIGHT - 6)
    y_at = _scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [_level("grid", _LEFT, _WIDTH - _RIGHT, y_at(tick)) for tick in y_ticks]
    parts += [_text("tick end", _LEFT - 8, y_at(tick) + 4, number(tick)) for tick in y_ticks]
    parts += [_text("tick middle", x_at(tick), _HEIGHT - _BOTTOM + 18, number(tick)) for tick in x_ticks]
    parts.append(_text("tick end", _WIDTH - _RIGHT, _HEIGHT - 6, x_label))
    parts += [_line(line, x_at, y_at) for line in lines]
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, title, Markup("").join(parts)
    )


def _text(kind: str, x: float, y: float, words: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(kind, x, y, words)


def _level(kind: str, left: float, right: float, y: float) -> Markup:
    """A horizontal line."""
    return Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>').format(kind, left, right, y=y)


def _line(line: Line, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> Markup:
    shown = _thinned(line.points)
    path = "M" + " L".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in shown)
    dots = line.points if len(line.points) <= MOST_DOTS else line.points[-1:]
    marks = [
        Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3"><title>{}: {} at {}</title></circle>').format(
            x_at(x), y_at(y), line.label, number(y), number(x)
        )
        for x, y in dots
    ]
    return Markup('<g class="line c{}"><path d="{}"/>{}</g>').format(line.colour, path, Markup("").join(marks))


def _thinned(points: tuple[Point, ...]) -> list[tuple[float, float]]:
    """At most `MOST_POINTS`: means of as many neighbours as it takes."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    span = high - low or 1.0
    middle = 0.0 if high > low else (end - start) / 2
    return lambda value: start + middle + (value - low) / span * (end - start)


def _ticks(low: float, high: float, count: int, whole: bool = False) -> list[float]:
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10] if not whole else [1, 2, 5, 10], integer=whole)
    ticks = [float(tick) for tick in locator.tick_values(low, high)]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if whole or len(inside) > 2 else ticks


def number(value: float) -> str:
    """As few characters as say it: 0.8912, 12,000, 5e-05."""
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:.4g}"


# ---- when elements were on

_ROW, _NAMES, _COUNT = 13, 118, 52
MOST_ROWS = 130  # with more, rows get lower and only blocks are named


def timeline(history: History) -> Markup:
    """Elements × reallocations: a bar while an element is on; epochs are told apart by lines."""
    places, decisions = history.places, history.decisions
    dense = len(places) > MOST_ROWS
    row = 8 if dense else _ROW
    column = max(7.0, min(30.0, 720 / len(decisions)))
    width, top = _NAMES + column * len(decisions) + _COUNT, 22
    height = top + row * len(places) + 6
    parts = [
        Markup('<rect class="track" x="{}" y="{}" width="{:.1f}" height="{}" rx="2"/>').format(
            _NAMES, top + row * i + 1, column * len(decisions), row - 2
        )
        for i in range(len(places))
    ]
    for i, place in enumerate(places):
        at = top + row * i
        named = not dense or i == 0 or places[i - 1].layer != place.layer
        if named:
            name = f"layer {place.layer}" if dense else place.key
            parts.append(_text("tick end", _NAMES - 8, at + row - 3, name))
        if i and places[i - 1].layer != place.layer:
            parts.append(_level("grid", _NAMES, width - _COUNT, at))
        for on, group in itertools.groupby(range(len(decisions)), key=lambda k, i=i: decisions[k].on[i]):
            if on:
                spell = list(group)
                first, last = spell[0], spell[-1]
                parts.append(
                    Markup(
                        '<rect class="on" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="2">'
                        "<title>{}: on from reallocation {} to {}</title></rect>"
                    ).format(
                        _NAMES + column * first + 0.5, at + 1, column * (last - first + 1) - 1, row - 2,
                        place.key, first, last,
                    )
                )  # fmt: skip
    times = history.times_on()
    if not dense:
        parts += [
            _text("tick", width - _COUNT + 6, top + row * i + row - 3, f"{times[place.key]} of {len(decisions)}")
            for i, place in enumerate(places)
        ]
    parts += _epochs(history, column, top, height)
    return Markup(
        '<svg class="timeline" style="min-width:{:.0f}px;max-width:{:.0f}px" viewBox="0 0 {:.1f} {}" role="img" '
        'aria-label="Which element was on after which of {} reallocations">{}</svg>'
    ).format(min(width, 640), width * 1.15, width, height, len(decisions), Markup("").join(parts))


def _epochs(history: History, column: float, top: int, height: int) -> list[Markup]:
    parts, labelled = [], -99.0
    for k, decision in enumerate(history.decisions):
        if k and history.decisions[k - 1].epoch == decision.epoch:
            continue
        x = _NAMES + column * k
        if k:
            parts.append(
                Markup('<line class="epoch" x1="{x:.1f}" x2="{x:.1f}" y1="{}" y2="{}"/>').format(top - 4, height, x=x)
            )
        if x - labelled > 46:
            parts.append(_text("tick", x + 2, top - 8, f"epoch {decision.epoch}"))
            labelled = x
    return parts
