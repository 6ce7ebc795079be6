"""The figures of a study's report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import plotly.graph_objects as go

from actions.run.run_folder import LOGS
from tools.reporting.curves import read_curves
from tools.reporting.figures import COLOURS, Chart, heat_map, new_figure
from tools.studies.results import Rung
from tools.studies.spec import Study
from tools.studies.statistics import Interval
from tools.studies.summary import ArmResult, Comparison


def colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def forest(study: Study, comparison: Comparison) -> Chart | None:
    """The difference of each arm from the baseline, with its interval."""
    arms = [arm for arm in comparison.arms if arm.against is not None]
    if not arms:
        return None
    figure = new_figure(
        60 + 34 * len(arms), xaxis={"title": {"text": f"better than {study.baseline} by ({study.measure})"}}
    )
    for arm in arms:
        found = arm.against.interval
        shade = _colour_of(study, arm)
        figure.add_scatter(
            x=[found.estimate], y=[arm.name], mode="markers", name=arm.name, marker={"size": 9, "color": shade},
            error_x=_bars([found], shade),
        )  # fmt: skip
    figure.add_vline(0, line={"dash": "dot", "width": 1.5})
    figure.update_yaxes(autorange="reversed")
    level = f"{study.confidence:.0%}"
    return Chart(
        "Difference from the baseline", figure, note=f"{level} intervals over seeds and rows, for each arm alone."
    )


def _colour_of(study: Study, arm: ArmResult) -> str:
    return colour(list(study.arms).index(arm.name))


_COSTS: Mapping[str, tuple[str, Callable[[ArmResult], float | None]]] = {
    "Quality against time": ("seconds of a run, with scoring", lambda arm: arm.seconds),
    "Quality against step time": ("seconds of a step", lambda arm: arm.step_seconds),
    "Quality against memory": (
        "peak memory (MiB)",
        lambda arm: arm.peak_memory_bytes and arm.peak_memory_bytes / 2**20,
    ),
}


def costs(study: Study, comparison: Comparison) -> list[Chart]:
    """Quality against each cost. A line joins the arms that no other arm beats in both."""
    charts = []
    for caption, (title, cost) in _COSTS.items():
        points = [(cost(arm), arm) for arm in comparison.arms]
        known = [(x, arm) for x, arm in points if x is not None]
        if known:
            charts.append(Chart(caption, _against(study, known, title)))
    return charts


_OVER_PARAMETERS: Mapping[str, tuple[str, Callable[[ArmResult], float | None]]] = {
    "Step time over parameters": ("ms of a step", lambda arm: arm.step_seconds and 1000 * arm.step_seconds),
    "Memory over parameters": _COSTS["Quality against memory"],
}


def sizes(study: Study, comparison: Comparison) -> list[Chart]:
    """The measure over the number of parameters, and beside it what the arms cost."""
    base = next((arm for arm in comparison.arms if arm.name == study.baseline), None)
    if base is None:
        return []
    charts = [_curve(study, comparison, base)]
    for caption, (title, cost) in _OVER_PARAMETERS.items():
        known = [(arm.parameters, value, arm.name) for arm in comparison.arms if (value := cost(arm)) is not None]
        if known:
            xs, ys, names = zip(*known, strict=True)
            figure = new_figure(300, xaxis=_LOG_PARAMETERS, yaxis={"title": {"text": title}})
            _named_points(figure, xs, ys, names)
            charts.append(Chart(caption, figure))
    return charts


def _named_points(figure: go.Figure, xs: Sequence[float], ys: Sequence[float], names: Sequence[str]) -> None:
    figure.add_scatter(
        x=xs, y=ys, text=names, mode="lines+markers+text", textposition="top center", cliponaxis=False,
        line={"color": COLOURS[0]},
    )  # fmt: skip


_LOG_PARAMETERS = {"title": {"text": "LoRA parameters"}, "type": "log"}


def _curve(study: Study, comparison: Comparison, base: ArmResult) -> Chart:
    """Where the band of an arm is beyond the dotted line, the arm is not shown to be enough."""
    sign = 1 if study.measure == "accuracy" else -1
    level = base.quality.estimate
    found = [Interval(0, 0, 0) if arm.against is None else arm.against.interval for arm in comparison.arms]
    xs = [arm.parameters for arm in comparison.arms]
    middle, low, high = ([level + sign * getattr(each, end) for each in found] for end in ("estimate", "low", "high"))
    figure = new_figure(340, xaxis=_LOG_PARAMETERS, yaxis={"title": {"text": study.measure}})
    figure.add_scatter(
        x=[*xs, *reversed(xs)], y=[*low, *reversed(high)], fill="toself", mode="none", opacity=0.2,
        fillcolor=COLOURS[0], hoverinfo="skip",
    )  # fmt: skip
    _named_points(figure, xs, middle, [arm.name for arm in comparison.arms])
    figure.add_hline(level - sign * study.resolve, line={"dash": "dot", "width": 1.5})
    note = (
        f"The band is the {study.confidence:.0%} interval of the difference from {base.name}. The dotted line is "
        f"{study.resolve:g} worse than {base.name}."
    )
    return Chart(f"{study.measure} over parameters", figure, note=note)


def _against(study: Study, points: Sequence[tuple[float, ArmResult]], title: str) -> go.Figure:
    layout = {"xaxis": {"title": {"text": title}}, "yaxis": {"title": {"text": study.measure}}}
    figure = new_figure(300, **layout, showlegend=True)
    front = pareto([(x, arm.quality.estimate) for x, arm in points], study.measure == "accuracy")
    xs, ys = zip(*front, strict=True)
    figure.add_scatter(
        x=xs, y=ys, mode="lines", line={"color": "gray", "dash": "dot"}, hoverinfo="skip", showlegend=False
    )
    for x, arm in points:
        found, shade = arm.quality, _colour_of(study, arm)
        figure.add_scatter(
            x=[x], y=[found.estimate], mode="markers", name=arm.name, marker={"size": 9, "color": shade},
            error_y=_bars([found], shade),
        )  # fmt: skip
    return figure


def _bars(intervals: Sequence[Interval], shade: str) -> dict[str, object]:
    """Error bars from the low to the high end of each interval."""
    return {
        "array": [found.high - found.estimate for found in intervals],
        "arrayminus": [found.estimate - found.low for found in intervals],
        "color": shade,
    }


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The points that no other point beats: none has a lower cost and an equal or better quality."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return front


def tuning(study: Study, rungs: Mapping[str, Sequence[Rung]]) -> Chart:
    """The measure on the tuning rows at each learning rate, a line for each rung. `rungs`: arm -> its comparisons."""
    figure = new_figure(300, xaxis={"title": {"text": "learning rate"}, "type": "log"}, showlegend=True)
    for position, (arm, found) in enumerate(rungs.items()):
        for rung in found:
            part = "" if rung.share == 1 else f" after {rung.share:.0%}"
            line = {"color": colour(position), "dash": "solid" if rung is found[-1] else "dot"}
            figure.add_scatter(
                x=list(rung.values), y=list(rung.values.values()), mode="lines+markers", name=f"{arm}{part}", line=line
            )
    note = "Dotted: after a share of the run. The better half goes on." if study.tuning == "halving" else ""
    return Chart(f"Tuning: {study.measure} on the tuning rows", figure, note=note)


def curves(study: Study, comparison: Comparison) -> list[Chart]:
    """The logged curves of the measured runs: the mean over seeds, in a band from the lowest to the highest."""
    series = {arm.name: [read_curves(run.folder / LOGS, "").series for run in arm.runs] for arm in comparison.arms}
    shades = {name: colour(position) for position, name in enumerate(study.arms)}
    splits = [split for arm in comparison.arms for run in arm.runs for split in run.rows]
    names = ["train/loss", *(f"{split}/{study.measure}" for split in splits)]
    charts = []
    for name in dict.fromkeys(names):
        figure = new_figure(300, xaxis={"title": {"text": "optimizer step"}}, showlegend=True)
        for arm, seeds in series.items():
            steps = set.intersection(*(set(dict(one.get(name, ()))) for one in seeds)) if seeds else set()
            if len(steps) > 1:
                _band(figure, sorted(steps), [dict(one[name]) for one in seeds], arm, shades[arm])
        if figure.data:
            charts.append(Chart(name, figure, note="Mean over seeds; the band reaches from the lowest to the highest."))
    return charts


def _band(figure: go.Figure, steps: Sequence[int], seeds: Sequence[Mapping[int, float]], arm: str, shade: str) -> None:
    values = [[one[step] for one in seeds] for step in steps]
    figure.add_scatter(x=steps, y=[fmean(v) for v in values], mode="lines", name=arm, line={"color": shade})
    if len(seeds) > 1:
        outline = [*(max(v) for v in values), *(min(v) for v in reversed(values))]
        figure.add_scatter(
            x=[*steps, *reversed(steps)], y=outline, fill="toself", mode="none", opacity=0.2, fillcolor=shade,
            showlegend=False, hoverinfo="skip",
        )  # fmt: skip


def rank_maps(comparison: Comparison) -> list[Chart]:
    """The rank of every place, the mean over seeds, for each arm."""
    charts = []
    every = list(dict.fromkeys(place for arm in comparison.arms for run in arm.runs for place in run.ranks))
    means = {
        arm.name: {place: fmean(run.ranks.get(place, 0) for run in arm.runs) for place in every}
        for arm in comparison.arms
    }
    ranks = [rank for places in means.values() for rank in places.values()]
    for arm in comparison.arms:
        places = means[arm.name]
        on = [place.key for place, rank in places.items() if rank]
        found = heat_map(places, on, lambda value: f"{value:.3g}" if value else "", "rank", beside=ranks)
        charts.append(Chart(f"Ranks: {arm.name}", found.figure, note=found.note, width=found.width))
    return charts


def budgets(study: Study, comparisons: Sequence[Comparison]) -> list[Chart]:
    """Quality against parameters, where a task has several budgets."""
    charts = []
    for task in study.tasks:
        own = [comparison for comparison in comparisons if comparison.task == task]
        if len(own) < 2:
            continue
        figure = new_figure(
            340, xaxis={"title": {"text": "LoRA parameters"}, "type": "log"}, yaxis={"title": {"text": study.measure}},
            showlegend=True,
        )  # fmt: skip
        for position, name in enumerate(study.arms):
            arms = [arm for comparison in own for arm in comparison.arms if arm.name == name]
            quality = [arm.quality for arm in arms]
            figure.add_scatter(
                x=[arm.parameters for arm in arms], y=[q.estimate for q in quality], name=name, mode="lines+markers",
                line={"color": colour(position)},
                error_y=_bars(quality, colour(position)),
            )  # fmt: skip
        charts.append(Chart(f"{task}: quality against parameters", figure))
    return charts
