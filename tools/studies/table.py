"""All runs of a study as one tidy CSV file: a row for each run, split of rows and value."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from tools.studies.results import Measured, mean
from tools.studies.spec import Study

COLUMNS = (
    "task", "budget", "arm", "method", "learning_rate", "seed", "share", "parameters", "rows", "measure", "value",
    "step_seconds", "peak_memory_bytes", "seconds",
)  # fmt: skip


def table(runs: Iterable[Measured], study: Study) -> str:
    """Return the text of the file. `rows` is `tuning` or `measuring`, and `share` the part of the run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        case = run.case
        who = (case.task, case.parameters, case.arm.name, case.arm.method, case.learning_rate, case.seed, case.share)
        cost = (run.step_seconds, run.peak_memory_bytes, round(run.seconds, 2))
        for rows in ("tuning", "measuring"):
            value = mean(run.on(study, tuning=rows == "tuning"))
            writer.writerow((*who, run.parameters, rows, study.measure, value, *cost))
    return text.getvalue()
