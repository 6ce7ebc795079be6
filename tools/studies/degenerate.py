"""What makes the result of a study say little, however narrow its intervals are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.mean_squares import Interval, interval
from tools.studies.results import Row, end_of, measuring_rows, rows_of
from tools.studies.spec import Study
from tools.studies.statistics import Rows
from tools.studies.summary import UNFINISHED, ArmResult, Comparison


def warnings(study: Study, comparison: Comparison) -> list[str]:
    """Sentences that a reader needs before the result."""
    found = (
        _without_result(comparison),
        _one_class(study, comparison),
        _no_better_than_a_constant(study, comparison),
        _all_equal(study, comparison),
        _ends_of_the_rates(study, comparison),
    )
    return [sentence for sentence in found if sentence]


def _without_result(comparison: Comparison) -> str:
    rates = ((f"{arm} at {rate:g}", why) for arm, lost in comparison.untuned.items() for rate, why in lost.items())
    reasons = [*comparison.missing.items(), *rates]
    waiting = ", ".join(name for name, why in reasons if why == UNFINISHED)
    failed = ", ".join(name for name, why in reasons if why != UNFINISHED)
    sentences = [f"Not finished: {waiting}."] if waiting else []
    sentences += [f"Without a result, because a run diverged or failed: {failed}."] if failed else []
    return " ".join(sentences)


def one_class_seeds(study: Study, arm: ArmResult) -> str:
    """The seeds of the runs that predict one class, while the labels have others; empty if there are none."""
    return ", ".join(str(run.case.seed) for run in arm.runs if _predicts_one_class(measuring_rows(study, run)))


def _one_class(study: Study, comparison: Comparison) -> str:
    seeds = {arm.name: one_class_seeds(study, arm) for arm in comparison.arms}
    names = "; ".join(f"{arm} with seed {some}" for arm, some in seeds.items() if some)
    return f"Runs that predict one class for all rows: {names}." if names else ""


def _predicts_one_class(rows: Sequence[Row]) -> bool:
    labels, predicted = ({getattr(row, name) for row in rows} for name in ("label", "predicted"))
    return _have_classes(rows) and len(predicted) == 1 < len(labels)


def _have_classes(rows: Sequence[Row]) -> bool:
    return all(row.label is not None and row.classes for row in rows)


def constant_prediction(study: Study, comparison: Comparison) -> Interval | None:
    """The measure of the best constant prediction on the measuring rows: the most frequent class for an accuracy, the
    shares of the classes for their loss, the mean for a squared error. None without labels.
    """
    rows = _constant_rows(study, comparison)
    return None if rows is None else interval(rows.totals, rows.counts, study.confidence)


def _constant_rows(study: Study, comparison: Comparison) -> Rows | None:
    rows = measuring_rows(study, comparison.arms[0].runs[0]) if comparison.arms else []
    if not rows or any(row.label is None or row.count != 1 for row in rows):
        return None
    labels = np.array([row.label for row in rows])
    totals = _constant(labels, study.measure == "accuracy", _have_classes(rows))
    return Rows(totals[None], np.ones(len(rows)))


def _constant(labels: NDArray[np.float64], accuracy: bool, classes: bool) -> NDArray[np.float64]:
    """The measure of each row (rows,)."""
    if not classes:
        return (labels - labels.mean()) ** 2
    _, of_class, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return (of_class == counts.argmax()).astype(float) if accuracy else -np.log(counts[of_class] / len(labels))


def _no_better_than_a_constant(study: Study, comparison: Comparison) -> str:
    constant = _constant_rows(study, comparison)
    if constant is None:
        return ""
    sign = 1 if study.measure == "accuracy" else -1
    names = []
    for arm in comparison.arms:
        rows = rows_of(study, arm.runs)
        if interval(sign * (rows.totals - constant.totals), rows.counts, study.confidence).low <= 0:
            names.append(arm.name)
    value = f"{study.measure} {constant.totals.mean():.4f}"
    return f"Not shown to be better than a constant prediction ({value}): {', '.join(names)}." if names else ""


def _all_equal(study: Study, comparison: Comparison) -> str:
    totals = [rows_of(study, arm.runs).totals for arm in comparison.arms]
    equal = len(totals) > 1 and all(np.array_equal(totals[0], other) for other in totals[1:])
    return f"All arms have the same {study.measure} on every row, to the last digit." if equal else ""


def _ends_of_the_rates(study: Study, comparison: Comparison) -> str:
    """Which arms may have a better rate than those that were tried. It can decide the whole comparison."""
    found: dict[str, list[str]] = {}
    for arm in comparison.arms:
        if (end := end_of(comparison.tried.get(arm.name, study.learning_rates), arm.learning_rate)) is not None:
            found.setdefault(end, []).append(arm.name)
    parts = [f"the {end} one for {', '.join(found[end])}" for end in ("lowest", "highest") if end in found]
    return f"The best learning rate is {' and '.join(parts)}: a rate beyond it may be better." if parts else ""
