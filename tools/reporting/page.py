"""Runs → one HTML page that needs nothing besides itself."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from actions.options import declared, defaults, flag_of
from actions.pictures import WIDE_SPAN
from heterolora.element import Place, order_of
from tools.reporting.charts import Line, line_chart, number, timeline
from tools.reporting.comparison import as_text, better, comparison, facts, percent, share
from tools.reporting.run import Run
from tools.reporting.seeds import groups, spreads

COLOURS = 8  # that the style sheet has for runs
BEST_SHOWN = 10  # elements in the list beside the scores


def render(runs: Sequence[Run]) -> str:
    """The page."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    varied = groups(runs)
    template = environment.get_template("page.html.j2")
    return template.render(
        title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        style=Markup((here / "style.css").read_text(encoding="utf-8")),
        runs=[_view(index, run) for index, run in enumerate(runs)],
        facts=facts(runs),
        comparison=comparison(runs),
        groups=varied,
        spreads=spreads(varied),
        charts=charts(runs),
        several=len(runs) > 1,
    )


def _breakable(text: str) -> Markup:
    """Names and paths may go on in the next line after a separator."""
    return Markup("<wbr>").join(re.findall(r"[^/_-]*[/_-]?", text))


# ---- curves


@dataclass(frozen=True)
class Chart:
    """One metric over the steps, all runs in one picture.

    Attributes:
        name: of the metric.
        svg: the picture.
        lines: (colour, run, last value, best value with its step, or empty) of each run that has it.
    """

    name: str
    svg: Markup
    lines: tuple[tuple[int, str, str, str], ...]


def charts(runs: Sequence[Run]) -> list[Chart]:
    """Losses first, then metrics, then learning rates."""
    names = dict.fromkeys(name for run in runs for name in run.curves.series)
    return [_chart(name, runs) for name in sorted(names, key=_order)]


def _order(name: str) -> tuple[int, str]:
    if name.startswith("learning_rate"):
        return (3, name)
    return (0 if name.startswith("train/") else 1 if name.endswith("/loss") else 2, name)


def _chart(name: str, runs: Sequence[Run]) -> Chart:
    lines, legend = [], []
    for index, run in enumerate(runs):
        points = run.curves.series.get(name)
        if not points:
            continue
        colour = index % COLOURS
        lines.append(Line(run.name, colour, points))
        legend.append((colour, run.name, number(points[-1][1]), _best_point(name, points)))
    return Chart(name, line_chart(f"{name} over optimizer steps", lines, "optimizer step"), tuple(legend))


def _best_point(name: str, points: Sequence[tuple[int, float]]) -> str:
    direction = better(name)
    if direction is None or name.startswith("train/") or len(points) < 2:
        return ""
    sign = 1 if direction == "min" else -1
    step, value = min(points, key=lambda point: sign * point[1])
    return f"{number(value)} at step {step:,}"


# ---- one run


@dataclass(frozen=True)
class HeatCell:
    """A cell of a heat map.

    Attributes:
        text: the number.
        shade: 0 to 1.
        framed: whether the element is marked.
        says: all about it, shown on hovering.
    """

    text: str
    shade: float
    framed: bool
    says: str


@dataclass(frozen=True)
class HeatMap:
    """Blocks × names.

    Attributes:
        names: of the columns.
        rows: (block, a cell for each name, `None` where there is no element).
        note: about the shades; empty if there is nothing to say.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[int, tuple[HeatCell | None, ...]], ...]
    note: str = ""


def heat_map(
    values: Mapping[Place, float],
    framed: Iterable[str],
    write: Callable[[float], str],
    what: str,
) -> HeatMap:
    """A table whose cells are shaded from 0 to the largest value.

    Args:
        values: finite and not negative.
        framed: keys of the elements that are marked.
        write: the number in a cell.
        what: the values are.
    """
    names = sorted({place.name for place in values}, key=order_of)
    marked, shade, log = frozenset(framed), *_shades(values.values())
    cells = {
        (place.layer, place.name): HeatCell(
            write(value), shade(value), place.key in marked, f"{place.key}: {what} {number(value)}"
        )
        for place, value in values.items()
    }
    layers = sorted({place.layer for place in values})
    rows = tuple((layer, tuple(cells.get((layer, name)) for name in names)) for layer in layers)
    return HeatMap(tuple(names), rows, "shades show the logarithm" if log else "")


def _shades(values: Iterable[float]) -> tuple[Callable[[float], float], bool]:
    """Value → shade, and whether it is the logarithm that counts."""
    positive = [value for value in values if value > 0]
    if not positive:
        return lambda value: 0.0, False
    low, high = min(positive), max(positive)
    if high / low <= WIDE_SPAN:
        return lambda value: round(value / high, 3), False
    span = math.log(high / low)
    return lambda value: round(0.06 + 0.94 * math.log(value / low) / span, 3) if value > 0 else 0.0, True


def _view(index: int, run: Run) -> dict[str, Any]:
    """What the template shows of a run."""
    scores, history = run.scores, run.history
    view: dict[str, Any] = {"run": run, "colour": index % COLOURS, "anchor": f"run-{index + 1}"}
    view["headline"] = _headline(run)
    view["options"] = _options(run)
    view["scores"] = view["best"] = view["ranks"] = view["frequency"] = view["timeline"] = view["churn"] = None
    if scores is not None:
        by_place = {item.element: item.score for item in scores.scored}
        view["scores"] = heat_map(by_place, run.chosen, _short, f"{scores.importance_test_name} score")
        total = sum(by_place.values())
        ordered = sorted(by_place.items(), key=lambda item: -item[1])[:BEST_SHOWN]
        view["best"] = [
            (place.key, number(score), score / total if total else 0.0, place.key in run.chosen)
            for place, score in ordered
        ]
    if run.ranks:
        ranks = {place: float(rank) for place, rank in run.ranks.items()}
        view["ranks"] = heat_map(ranks, run.elements_on, lambda rank: f"{rank:.0f}" if rank else "off", "rank")
    if history is not None:
        times = history.times_on()
        often = {place: float(times[place.key]) for place in history.places}
        view["frequency"] = heat_map(often, history.last_on(), lambda value: f"{value:.0f}", "times on")
        view["timeline"] = timeline(history)
        view["churn"] = _churn(index, run)
    return view


def _churn(index: int, run: Run) -> Markup | None:
    churn = run.history.churn()
    if len(churn) < 3:
        return None
    points = tuple(enumerate(churn))[1:]
    line = Line(run.name, index % COLOURS, points)
    return line_chart("Share of the elements that each reallocation switched", [line], "reallocation")


def _headline(run: Run) -> list[tuple[str, str, str]]:
    """(figure, what it is, more about it): the few that one wants first."""
    cards = []
    if run.figures:
        split, row = next(iter(run.figures.items()))
        name = next((name for name in row if name != "loss"), "loss")
        value = row[name]
        cards.append(("–" if value is None else f"{value:.4f}", name, f"on {split}, of the best checkpoint"))
    if run.parameters:
        of_all = f"{percent(share(run))} of {run.parameters['total']:,}"
        cards.append((f"{run.parameters['trainable']:,}", "trainable parameters", of_all))
    if run.ranks:
        cards.append((f"{len(run.elements_on)}", "elements on", f"of {len(run.ranks)}"))
    if run.scores is not None:
        about = f"by {run.scores.importance_test_name}, {run.scores.batches} batches of {run.scores.batch_size}"
        cards.append((f"{len(run.scores.scored)}", "elements scored", about))
    if run.history is not None:
        about = f"by {run.option('importance_test_name')}"
        cards.append((f"{len(run.history.decisions)}", "reallocations", about))
    return cards


def _options(run: Run) -> dict[str, list[tuple[str, str, bool]]]:
    """Heading → (option, value, whether it is the default) of those that have an effect on the action."""
    groups: dict[str, list[tuple[str, str, bool]]] = {}
    for name, info in declared().items():
        if info.used_by(run.action) or not run.action:
            value = run.option(name)
            row = (flag_of(name), as_text(value), value == _plain(defaults()[name]))
            if name != "config":
                groups.setdefault(info.group, []).append(row)
    return groups


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _short(value: float) -> str:
    """Three digits, in the least room."""
    if value == 0 or 1e-3 <= value < 1e4:
        return f"{value:.3g}"
    mantissa, power = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(power)}"
