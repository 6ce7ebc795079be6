"""The result of a classification by class."""

from __future__ import annotations

from collections.abc import Iterator

from actions.result.classes import by_class, is_of_labels
from heterolora.pictures.of_run import of_classes
from tools.reporting.comparison import Row
from tools.reporting.figures import Chart
from tools.reporting.parts.part import Part, Shared
from tools.reporting.run import Run


def classes(run: Run, shared: Shared) -> Iterator[Part]:
    if not run.confusion:
        return
    rows = []
    for split, confusion in run.confusion.items():
        for each in by_class(confusion, run.classes):
            shares = (f"{share:.4f}" for share in (each.precision, each.recall, each.f1))
            rows.append(Row.of(each.name, split, f"{each.rows:,}", *shares))
    matrices = {split: each for split, each in run.confusion.items() if not is_of_labels(each)}
    charts = tuple(map(Chart, of_classes(run.classes, matrices)))
    yield Part("Classes", charts=charts, head=("class", "split", "rows", "precision", "recall", "F1"), rows=tuple(rows))
