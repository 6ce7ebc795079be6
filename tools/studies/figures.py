"""The figures of a study's report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from actions.run.run_folder import LOGS
from heterolora.pictures.drawing import style
from heterolora.pictures.heat_map import HeatMap
from heterolora.pictures.intervals import Intervals, Row
from heterolora.pictures.line_chart import Line, LineChart
from model.mean_squares import Interval
from tools.reporting.curves import read_curves
from tools.reporting.figures import Chart, Key
from tools.studies.results import Rung
from tools.studies.spec import Study
from tools.studies.summary import ArmResult, Comparison


def forest(study: Study, comparison: Comparison) -> Chart | None:
    """The difference of each arm from the baseline, with its interval."""
    rows = [
        Row(arm.name, style(_position(study, arm)), *_ends(arm.against.interval))
        for arm in comparison.arms
        if arm.against is not None
    ]
    if not rows:
        return None
    label = f"better than {study.baseline} by ({study.measure})"
    note = f"{study.confidence:.0%} intervals over seeds and rows, for each arm alone."
    return Chart(Intervals("Difference from the baseline", rows, label, note))


def _ends(found: Interval) -> tuple[float, float, float]:
    return found.estimate, found.low, found.high


def _position(study: Study, arm: ArmResult) -> int:
    return list(study.arms).index(arm.name)


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
            front = pareto([(x, arm.quality.estimate) for x, arm in known], study.measure == "accuracy")
            lines = [replace(_line(study, arm.name, [(x, arm.quality)]), joined=False) for x, arm in known]
            charts.append(_chart(LineChart(caption, lines, title, study.measure, front=front)))
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
        known = [(arm, value) for arm in comparison.arms if (value := cost(arm)) is not None]
        if known:
            points, names = [(arm.parameters, value) for arm, value in known], [arm.name for arm, _ in known]
            line = Line("", style(0), points, names=names)
            charts.append(Chart(LineChart(caption, [line], "LoRA parameters", title, logarithmic=True)))
    return charts


def _curve(study: Study, comparison: Comparison, base: ArmResult) -> Chart:
    """Where the band is beyond the dotted line, the arm is not shown to be enough."""
    sign = 1 if study.measure == "accuracy" else -1
    found = [Interval(0, 0, 0) if arm.against is None else arm.against.interval for arm in comparison.arms]
    xs = [arm.parameters for arm in comparison.arms]
    middle, low, high = (
        [base.quality.estimate + sign * getattr(each, end) for each in found] for end in ("estimate", "low", "high")
    )
    names = [arm.name for arm in comparison.arms]
    line = Line("", style(0), [*zip(xs, middle, strict=True)], low, high, names=names)
    worse = base.quality.estimate - sign * study.resolve
    note = (
        f"The band is the {study.confidence:.0%} interval of the difference from {base.name}. The dotted line is "
        f"{study.resolve:g} worse than {base.name}."
    )
    title, front = f"{study.measure} over parameters", [(min(xs), worse), (max(xs), worse)]
    return Chart(LineChart(title, [line], "LoRA parameters", study.measure, logarithmic=True, front=front, note=note))


def _line(study: Study, name: str, points: Sequence[tuple[float, Interval]]) -> Line:
    """A line of an arm, with its intervals."""
    estimates = [(x, found.estimate) for x, found in points]
    low, high = [found.low for _, found in points], [found.high for _, found in points]
    return Line(name, style(list(study.arms).index(name)), estimates, low, high)


def _chart(picture: LineChart) -> Chart:
    return Chart(picture, tuple(Key(line.style, line.label) for line in picture.lines))


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """The points that no other point beats: none has a lower cost and an equal or better quality."""
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * y > sign * front[-1][1]:
            front.append((x, y))
    return front


def tuning(study: Study, rungs: Mapping[str, Sequence[Rung]]) -> Chart | None:
    """The measure on the tuning rows at each learning rate, a line for each rung. `rungs`: arm -> its comparisons."""
    lines = []
    for position, (arm, found) in enumerate(rungs.items()):
        for rung in (rung for rung in found if rung.values):
            part = "" if rung.share == 1 else f" after {rung.share:.0%}"
            dashes = "solid" if rung is found[-1] else "dotted"
            lines.append(Line(f"{arm}{part}", replace(style(position), dashes=dashes), [*rung.values.items()]))
    if not lines:
        return None
    note = "Dotted: after a share of the run. The better half goes on." if study.tuning == "halving" else ""
    title = f"Tuning: {study.measure} on the tuning rows"
    ticks = sorted({rate for found in rungs.values() for rung in found for rate in rung.values})
    return _chart(LineChart(title, lines, "learning rate", logarithmic=True, ticks=ticks, note=note))


def curves(study: Study, comparison: Comparison) -> list[Chart]:
    """The logged curves of the measured runs: the mean over seeds, in a band from the lowest to the highest."""
    series = {arm.name: [read_curves(run.folder / LOGS, "").series for run in arm.runs] for arm in comparison.arms}
    splits = [split for arm in comparison.arms for run in arm.runs for split in run.rows]
    names = ["train/loss", *(f"{split}/{study.measure}" for split in splits)]
    note = "Mean over seeds; the band reaches from the lowest to the highest."
    charts = []
    for name in dict.fromkeys(names):
        lines = list(_means(study, name, series))
        if lines:
            charts.append(_chart(LineChart(name, lines, "optimizer step", note=note)))
    return charts


def _means(study: Study, name: str, series: Mapping[str, Sequence[Mapping[str, Sequence]]]) -> Iterator[Line]:
    for arm, seeds in series.items():
        steps = sorted(set.intersection(*(set(dict(one.get(name, ()))) for one in seeds))) if seeds else []
        if len(steps) > 1:
            values = [[dict(one[name])[step] for one in seeds] for step in steps]
            points = [(step, Interval(fmean(v), min(v), max(v))) for step, v in zip(steps, values, strict=True)]
            line = _line(study, arm, points)
            yield line if len(seeds) > 1 else replace(line, low=(), high=())


def rank_maps(comparison: Comparison) -> list[Chart]:
    """The rank of every place, the mean over seeds, for each arm."""
    every = list(dict.fromkeys(place for arm in comparison.arms for run in arm.runs for place in run.ranks))
    means = {
        arm.name: {place: fmean(run.ranks.get(place, 0) for run in arm.runs) for place in every}
        for arm in comparison.arms
    }
    ranks = [rank for places in means.values() for rank in places.values()]
    return [
        Chart(HeatMap(f"Ranks: {name}", places, "rank", [p.key for p, rank in places.items() if rank], beside=ranks))
        for name, places in means.items()
        if places
    ]


def budgets(study: Study, comparisons: Sequence[Comparison]) -> list[Chart]:
    """Quality against parameters, where a task has several budgets."""
    charts = []
    for task in study.tasks:
        own = [comparison for comparison in comparisons if comparison.task == task]
        if len(own) < 2:
            continue
        found = {name: [arm for one in own for arm in one.arms if arm.name == name] for name in study.arms}
        lines = [
            _line(study, name, [(arm.parameters, arm.quality) for arm in arms]) for name, arms in found.items() if arms
        ]
        title = f"{task}: quality against parameters"
        charts.append(_chart(LineChart(title, lines, "LoRA parameters", study.measure, logarithmic=True)))
    return charts
