"""The scores of a run, and what its budget turns on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from heterolora.choosing.allocation import default_mode, tie_generator
from heterolora.choosing.ranks import choose
from heterolora.choosing.words import degenerate, with_cost
from heterolora.pictures.drawing import number
from heterolora.pictures.heat_map import HeatMap
from heterolora.pictures.of_run import of_scores
from options.scoring import BUDGETS, ReallocationOptions
from tools.reporting.comparison import Row
from tools.reporting.figures import Chart
from tools.reporting.parts.part import Part, Shared, sentence
from tools.reporting.run import Run

BEST_SHOWN = 10  # elements in the list of best scores


def scores(run: Run, shared: Shared) -> Iterator[Part]:
    if run.scores is None:
        return
    found, elements = run.scores, [item.element for item in run.scores.scored]
    options = ReallocationOptions(**{name: run.option(name) for name in BUDGETS})
    mode = run.option("dyrealloc_ags_mode") or default_mode(found.has_shortcuts)
    budget = replace(options.budget, step_time=found.step_time)
    on = choose(found.scored, budget, mode, tie_generator(run.option("seed"), 0))
    pictures = (
        shared.with_values(picture, shared.scores) if isinstance(picture, HeatMap) else picture
        for picture in of_scores(found, on, " ".join(options.budget_flags)).values()
    )
    unit = {"share": "", "parameters": "parameters ", "time": "of the step time "}[budget.unit]
    text = (
        f"The {found.importance_test_name} score of every element, from {found.batches} batches of {found.batch_size} "
        f"rows. The budget of {budget.amount:,} {unit}turns the framed {len(on)} on: "
        f"{with_cost(elements, [element for element in elements if element.key in on], found.step_time)}."
    )
    total = sum(item.score for item in found.scored) or 1.0
    best = sorted(found.scored, key=lambda item: -item.score)[:BEST_SHOWN]
    yield Part(
        "Scores",
        text,
        sentence(degenerate(elements, on)),
        tuple(map(Chart, pictures)),
        ("element", "score", "of the sum", ""),
        tuple(
            Row.of(key, number(score), f"{score / total:.1%}", "on" if key in on else "")
            for key, score in ((item.element.key, item.score) for item in best)
        ),
    )
