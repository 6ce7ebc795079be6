"""The report of a study: one HTML page that needs no network, and the same tables as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from actions.run.run_folder import METRICS
from heterolora.pictures.drawing import Style, style
from options.every import defaults
from tools.reporting.figures import Chart
from tools.reporting.page import page_of
from tools.studies import figures
from tools.studies.degenerate import constant_prediction, one_class_seeds
from tools.studies.execution import Execution
from tools.studies.results import Rung
from tools.studies.sentence import FEW, answer
from tools.studies.spec import Study
from tools.studies.summary import ArmResult, Comparison

TUNING_HEAD = ("arm", "share of the run", "learning rate: value on the tuning rows", "went on")
_VARY = {
    True: "The intervals count the variance over seeds and over rows",
    False: "With one seed the intervals count the variance over rows alone, and other seeds may differ more",
}
_SIZES = {
    "better": "All arms have the same budget of trainable LoRA parameters.",
    "smallest": "Each arm has its own number of trainable LoRA parameters.",
}
_TOGETHER = {
    "better": "corrected for the number of arms by Holm's method",
    "smallest": "of the hypothesis that the arm is worse by the difference that matters; the arms are tested from the "
    "largest to the smallest, so that no correction is needed, and an arm has at least the p value of those before it",
}


@dataclass(frozen=True)
class View:
    """A comparison as the template shows it."""

    heading: str
    sentence: str
    rows: tuple[tuple[Style, tuple[str, ...], str], ...]  # the style, the cells, and the seeds that predict one class
    constant: tuple[str, ...]  # cells of the best constant prediction; empty without labels
    missing: dict[str, str]
    tuning: tuple[tuple[str, ...], ...]  # rows of cells; empty without halving
    charts: tuple[Chart, ...]


def rungs_of(comparison: Comparison, execution: Execution) -> dict[str, list[Rung]]:
    """Arm -> the comparisons of its learning rates."""
    rungs = {arm: execution.rungs.get((comparison.task, comparison.budget, arm), []) for arm in execution.study.arms}
    return {arm: found for arm, found in rungs.items() if found}


def tuning_rows(study: Study, comparison: Comparison, execution: Execution) -> tuple[tuple[str, ...], ...]:
    """The rungs of successive halving: a row for each arm and rung."""
    if study.tuning != "halving":
        return ()
    return tuple(
        (arm, f"{rung.share:.1%}", _listed(rung), ", ".join(f"{rate:g}" for rate in rung.best) or "none")
        for arm, rungs in rungs_of(comparison, execution).items()
        for rung in rungs
    )


def _listed(rung: Rung) -> str:
    return ", ".join(f"{rate:g}: {value:.4f}" for rate, value in rung.values.items())


def head(study: Study) -> tuple[str, ...]:
    level, smallest = f"{study.confidence:.0%}", study.question == "smallest"
    return (
        "arm", "learning rate", f"{study.measure} ({level})", f"better than {study.baseline} ({level})",
        f"p (not worse by {study.resolve:g})" if smallest else "p (Holm)", "parameters",
        f"of {study.baseline}" if smallest else "unspent", "step", "peak memory", "run with scoring",
    )  # fmt: skip


def cells(study: Study, comparison: Comparison, arm: ArmResult) -> tuple[str, ...]:
    against = arm.against
    return (
        arm.name,
        f"{arm.learning_rate:g}",
        arm.quality.text(),
        "–" if against is None else against.interval.text(signed=True),
        "–" if against is None else _p_value(against.corrected),
        f"{arm.parameters:,.0f}",
        _of_the_budget(study, comparison, arm),
        "–" if arm.step_seconds is None else f"{arm.step_seconds * 1000:.1f} ms",
        "–" if arm.peak_memory_bytes is None else f"{arm.peak_memory_bytes / 2**20:,.0f} MiB",
        f"{arm.seconds:.0f} s",
    )


def _of_the_budget(study: Study, comparison: Comparison, arm: ArmResult) -> str:
    if comparison.budget is not None:
        return f"{comparison.budget - arm.parameters:,.0f}"
    largest = next((other for other in comparison.arms if other.name == study.baseline), None)
    return "–" if largest is None else f"{arm.parameters / largest.parameters:.1%}"


def answer_first(row: tuple[str, ...]) -> tuple[str, ...]:
    """The cells as the page shows them: what answers the question is beside the arm, so that it is always seen."""
    name, rate, measure, better, p, *others = row or ("",) * 5
    return (name, better, p, measure, rate, *others) if row else ()


def about(study: Study, comparisons: Sequence[Comparison], execution: Execution) -> str:
    """Model, data, rows, budgets and date of the study, for its title."""
    given = [{**defaults(), **options} for options in study.tasks.values()]
    models = dict.fromkeys(Path(str(each["load"] or each["model"])).name for each in given)
    data = dict.fromkeys(Path(str(each["dataset"])).name for each in given)
    runs = [run for comparison in comparisons for arm in comparison.arms for run in arm.runs]
    rows = sorted({len(run.on(study, tuning=False)) for run in runs})
    budgets = [f"{each.budget:,}" for each in comparisons if each.budget is not None]
    sizes = [f"{arm.parameters:,.0f}" for comparison in comparisons for arm in comparison.arms]
    times = [path.stat().st_mtime for run in runs if (path := run.folder / METRICS).is_file()]
    parts = [", ".join(models), ", ".join(data)]
    parts += [f"{' and '.join(f'{count:,}' for count in rows)} measured rows"] if rows else []
    parts += [f"{', '.join(dict.fromkeys(budgets or sizes))} LoRA parameters"] if budgets or sizes else []
    if times and max(times) > 0:  # a published archive has no times
        parts.append(f"{datetime.fromtimestamp(max(times)):%Y-%m-%d}")
    return " · ".join(parts)


def constant_cells(study: Study, comparison: Comparison) -> tuple[str, ...]:
    """The row of the best constant prediction, to compare the arms with; empty without labels."""
    found = constant_prediction(study, comparison)
    if found is None:
        return ()
    name = "majority class" if study.measure == "accuracy" else "constant prediction"
    row = (name, "–", f"{found.estimate:.4f}")
    return (*row, *("–" for _ in head(study)[len(row) :]))


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def method(study: Study, execution: Execution) -> tuple[str, ...]:
    """How the figures came about."""
    several = f"seeds {', '.join(map(str, study.seeds))}"
    tuning = f"seeds {', '.join(map(str, study.tuning_seeds))}"
    rates = ", ".join(f"{rate:g}" for rate in study.learning_rates)
    runs = list(execution.measured.values())
    halved = " by successive halving" if study.tuning == "halving" else ""
    if study.extend_rates:
        halved = f", and of up to {study.extend_rates} more beyond an end that was the best"
    splits = {tuple(run.split(study, tuning) for tuning in (True, False)) for run in runs}
    rows = " ".join(
        f"A share of {study.tuning_share:g} of the rows of the split {tuning} tunes; the others measure."
        if tuning == measuring
        else f"The split {tuning} tunes; {measuring} measures."
        for tuning, measuring in sorted(splits)
    )
    few = " Few seeds make intervals wide: use five or more." if len(study.seeds) < FEW else ""
    stopped = {part.case.run: part for part in execution.parts.values() if part.case.run not in execution.measured}
    minutes = sum(run.seconds for run in (*runs, *stopped.values())) / 60  # the last part of a run counts those before
    return (
        f"{_SIZES[study.question]} Every arm was tuned in the same way: it got the best of "
        f"the learning rates {rates}{halved}, with {tuning}. Then it was measured with {several}. The weights at the "
        f"end of training are measured, not the best ones. {rows}",
        "Runs of one seed see the same rows in the same order and start from the same new head. Differences are "
        f"paired. {_VARY[len(study.seeds) > 1]}: an analysis of variance with Banerjee's combination of t intervals. "
        f"P values are those of the same statistic, {_TOGETHER[study.question]}.{few}",
        f"{len(runs)} runs and {len(stopped)} that were stopped early took {minutes:.1f} minutes, with the start of "
        "each process and the scoring before it.",
    )


def views(study: Study, comparisons: Sequence[Comparison], execution: Execution) -> list[View]:
    found = []
    for comparison in comparisons:
        styles = {name: style(position) for position, name in enumerate(study.arms)}
        tuned = rungs_of(comparison, execution)
        by_size = figures.sizes(study, comparison) if study.question == "smallest" else []
        costs = figures.costs(study, comparison)
        charts = [*by_size, figures.forest(study, comparison), *costs, figures.tuning(study, tuned)]
        charts += [*figures.curves(study, comparison), *figures.rank_maps(comparison)]
        found.append(
            View(
                comparison.heading,
                answer(study, comparison),
                tuple(
                    (styles[arm.name], answer_first(cells(study, comparison, arm)), one_class_seeds(study, arm))
                    for arm in comparison.arms
                ),
                answer_first(constant_cells(study, comparison)),
                without_result(comparison),
                tuning_rows(study, comparison, execution),
                tuple(chart for chart in charts if chart is not None),
            )
        )
    return found


def without_result(comparison: Comparison) -> dict[str, str]:
    """What has no result, and why: arms, and learning rates of other arms."""
    rates = ((f"{arm} at {rate:g}", why) for arm, lost in comparison.untuned.items() for rate, why in lost.items())
    return dict(comparison.missing) | dict(rates)


def render(study: Study, comparisons: Sequence[Comparison], execution: Execution) -> str:
    """Return the HTML page."""
    return page_of(
        "study.html.j2",
        title=execution.folder.name,
        several=True,
        about=about(study, comparisons, execution),
        head=answer_first(head(study)),
        tuning_head=TUNING_HEAD,
        views=views(study, comparisons, execution),
        budgets=figures.budgets(study, comparisons),
        method=method(study, execution),
    )


def markdown(study: Study, comparisons: Sequence[Comparison], execution: Execution) -> str:
    """Return the tables as Markdown."""
    lines = [f"# {execution.folder.name}", ""]
    for comparison in comparisons:
        lines += [f"## {comparison.heading}", "", answer(study, comparison), ""]
        table = [head(study), *(cells(study, comparison, arm) for arm in comparison.arms)]
        table += [constant] if (constant := constant_cells(study, comparison)) else []
        lines += [*_markdown_table(table), ""]
        if rows := tuning_rows(study, comparison, execution):
            lines += [*_markdown_table([TUNING_HEAD, *rows]), ""]
        lines += [*(f"{name} has no result: {reason}" for name, reason in without_result(comparison).items()), ""]
    return "\n".join([*lines, *method(study, execution)]) + "\n"


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return [head, "|" + " --- |" * len(rows[0]), *body]
