"""The plotly figures of a report. They leave colours that depend on the theme to the page's script."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from actions.result.pictures import WIDE_SPAN
from heterolora.choosing.history import History
from heterolora.elements.element import Place, order_of
from tools.reporting.curves import Point

COLOURS = (  # one for each run
    "#3b7fc4", "#d0722a", "#2f9a5f", "#cc4f8f", "#8a6bd1", "#1a97a5", "#97851a", "#d25353", "#76818d", "#7d5233",
    "#2f4a8a", "#9ab83c",
)  # fmt: skip
MOST_POINTS = 240  # of a line; a longer line shows means of neighbouring points
MOST_DOTS = 40  # a line with more points has no markers
MOST_ROWS = 130  # of a timeline that names every element; a longer one names the blocks


@dataclass(frozen=True)
class Line:
    """One line of a chart: the run's name, its colour, and (x, y) points in the order of x."""

    label: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Chart:
    """A figure and the text around it."""

    caption: str
    figure: go.Figure
    legend: tuple[tuple[str, str, str, str], ...] = ()  # (colour, run, last value, best value and its step)
    note: str = ""
    width: int = 0  # pixels that the figure needs; a narrower page scrolls it


def line_chart(lines: Sequence[Line], x_label: str) -> go.Figure:
    """Lines over a common x axis; each line has at least one point."""
    xs = [x for line in lines for x, _ in line.points]
    whole_ticks = {"dtick": 1} if max(xs) - min(xs) < 8 else {}  # plotly would put ticks between whole numbers
    figure = new_figure(260, xaxis={"title": {"text": x_label}, "tickformat": ",", **whole_ticks})
    ys = [y for line in lines for _, y in line.points]
    figure.update_yaxes(exponentformat="e", range=_range(ys))
    if _range(ys) is not None:  # plotly would write several ticks with the same few digits
        figure.update_yaxes(tickvals=[ys[0]], ticktext=[number(ys[0])])
    for line in lines:
        x, y = zip(*_thinned(line.points), strict=True)
        mode = "lines+markers" if len(x) <= MOST_DOTS else "lines"
        hover = f"%{{y:.4~g}} at {x_label} %{{x:,}}"
        figure.add_scatter(x=x, y=y, name=line.label, mode=mode, line={"color": line.colour}, hovertemplate=hover)
    return figure


def new_figure(height: int, **layout: object) -> go.Figure:
    margin = {"l": 8, "r": 8, "t": 8, "b": 8}
    return go.Figure(layout={"template": {}, "height": height, "margin": margin, "showlegend": False, **layout})


def scatter(points: Mapping[Place, tuple[float, ...]], marked: Collection[str], caption: str) -> Chart:
    """Two values of every place against each other; `marked` are the keys of the elements that are on."""
    values = [value for point in points.values() for value in point]
    wide = min(values) > 0 and max(values) / min(values) > WIDE_SPAN
    kind = "log" if wide else "linear"
    titles = ("score from every second batch", "score from the other batches")
    figure = new_figure(340, xaxis={"title": titles[0], "type": kind}, yaxis={"title": titles[1], "type": kind})
    figure.add_scatter(
        x=[min(values), max(values)], y=[min(values), max(values)], mode="lines", hoverinfo="skip",
        line={"color": "gray", "width": 1, "dash": "dot"},
    )  # fmt: skip
    for label, colour in (("off", "gray"), ("on", COLOURS[1])):
        places = [place for place in points if (place.key in marked) == (label == "on")]
        x, y = ([points[place][half] for place in places] for half in (0, 1))
        hover = [f"{place.key}: {number(a)} and {number(b)}, {label}" for place, a, b in zip(places, x, y, strict=True)]
        figure.add_scatter(x=x, y=y, mode="markers", marker={"color": colour}, hovertext=hover, hoverinfo="text")
    return Chart(caption, figure, note="Orange elements are on. On the dotted line both scores are equal.", width=420)


def _range(values: Sequence[float]) -> list[float] | None:
    """The range of the y axis if the values are constant up to rounding; otherwise None, and plotly chooses it."""
    low, high = min(values), max(values)
    if high - low > 1e-6 * max(abs(low), abs(high)):
        return None
    margin = abs(low) / 2 or 1.0
    return [low - margin, high + margin]


def _thinned(points: Sequence[Point]) -> Sequence[tuple[float, float]]:
    """At most `MOST_POINTS` points: the means of equally many neighbours."""
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return points if size == 1 else [tuple(sum(axis) / len(axis) for axis in zip(*g, strict=True)) for g in groups]


def heat_map(
    values: Mapping[Place, float],
    marked: Collection[str],
    write: Callable[[float], str],
    what: str,
    names: Sequence[str] = (),
    beside: Iterable[float] = (),
) -> Chart:
    """Blocks × names: a cell shows the value of an element, and its colour the value's share of the largest.

    The values are finite and not negative. `marked` are the keys of the elements that are on; they get a frame.
    `write` returns the text of a cell, and `what` names the values. Maps that are compared have the same columns,
    `names`, and the same colours: `beside` are the values of the other maps.
    """
    names = sorted({place.name for place in values} | {*names}, key=order_of)
    layers = sorted({place.layer for place in values})
    shade, logarithmic = _shades([*values.values(), *beside])

    def grid(cell: Callable[[Place], object], missing: object = "") -> list[list[object]]:
        places = [[Place(layer, name) for name in names] for layer in layers]
        return [[cell(place) if place in values else missing for place in row] for row in places]

    def hover(place: Place) -> str:
        return f"{place.key}: {what} {number(values[place])}{', on' if place.key in marked else ''}"

    figure = new_figure(
        29 * len(layers) + 40,
        xaxis={"tickvals": [*range(len(names))], "ticktext": names, "side": "top", "showgrid": False},
        yaxis={"tickvals": [*range(len(layers))], "ticktext": layers, "autorange": "reversed", "showgrid": False},
    )
    figure.update_yaxes(title={"text": "block"}, zeroline=False).update_xaxes(zeroline=False)
    figure.add_heatmap(
        z=grid(lambda place: shade(values[place]), None),
        text=grid(lambda place: write(values[place])),
        hovertext=grid(hover),
        texttemplate="%{text}", hoverinfo="text", hoverongaps=False, zmin=0, zmax=1, showscale=False, xgap=3, ygap=3,
    )  # fmt: skip
    frames = [(names.index(p.name), layers.index(p.layer)) for p in values if p.key in marked]
    figure.update_layout(
        shapes=[{"x0": x - 0.47, "x1": x + 0.47, "y0": y - 0.44, "y1": y + 0.44, "type": "rect"} for x, y in frames]
    )
    note = "Colours show the logarithm." if logarithmic else ""
    return Chart("", figure, note=note, width=60 * len(names) + 60)


def _shades(values: Iterable[float]) -> tuple[Callable[[float], float], bool]:
    """Returns a function from value to colour, 0 to 1, and whether it takes the logarithm."""
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1), max(positive, default=1)
    if high / low <= WIDE_SPAN:
        return lambda value: round(value / high, 3), False
    span = math.log(high / low)
    return lambda value: round(0.06 + 0.94 * math.log(value / low) / span, 3) if value > 0 else 0.0, True


def timeline(history: History) -> Chart:
    """Elements × reallocations: which element is on after which; dashed lines separate epochs."""
    places, decisions, times = history.places, history.decisions, history.times_on()
    dense = len(places) > MOST_ROWS
    first_of_block = [i for i, place in enumerate(places) if i == 0 or places[i - 1].layer != place.layer]
    first_of_epoch = [k for k, d in enumerate(decisions) if k == 0 or decisions[k - 1].epoch != d.epoch]
    named = [places[i] for i in first_of_block] if dense else places
    when = [f"{k} (epoch {decision.epoch}, batch {decision.step})" for k, decision in enumerate(decisions)]
    figure = new_figure((8 if dense else 14) * len(places) + 50)
    figure.add_heatmap(
        x=when,
        y=[place.key for place in places],
        z=[[int(decision.on[i]) for decision in decisions] for i in range(len(places))],
        text=[["on" if decision.on[i] else "off" for decision in decisions] for i in range(len(places))],
        hovertemplate="%{y}, reallocation %{x}: %{text}<extra></extra>", zmin=0, zmax=1, showscale=False, ygap=2,
    )  # fmt: skip
    counts = [f"{place.key}  {times[place.key]} of {len(decisions)}" for place in named]
    figure.update_yaxes(
        tickvals=[place.key for place in named], autorange="reversed", showgrid=False,
        ticktext=[f"layer {place.layer}" for place in named] if dense else counts,
    )  # fmt: skip
    figure.update_xaxes(
        tickvals=[when[k] for k in first_of_epoch], side="top", showgrid=False,
        ticktext=[f"epoch {decisions[k].epoch}" for k in first_of_epoch],
    )  # fmt: skip
    for k in first_of_epoch[1:]:
        figure.add_vline(k - 0.5, line={"dash": "dot", "width": 1.5})
    for i in first_of_block[1:]:
        figure.add_hline(i - 0.5, line={"color": "gray", "width": 0.5})
    return Chart("", figure, width=180 + 7 * len(decisions))


def number(value: float) -> str:
    """A short form of a number: 0.8912, 12,000, 5e-05."""
    return f"{int(value):,}" if value == int(value) and abs(value) < 1e6 else f"{value:.4g}"
