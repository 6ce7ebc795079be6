"""The parameters of a run."""

from __future__ import annotations

from collections.abc import Iterator

from tools.reporting.comparison import Row
from tools.reporting.parts.part import Part, Shared
from tools.reporting.run import Run


def parameters(run: Run, shared: Shared) -> Iterator[Part]:
    if not run.parameters:
        return
    rows = []
    for row in (*run.parameters["rows"], {"kind": "all", "name": "", "ranks": [], **run.parameters}):
        on = f"{row['on']} of {row['on'] + row['off']}" if row["ranks"] else ""
        sizes = (f"{row['trainable']:,}", f"{row['total']:,}")
        rows.append(Row.of(row["kind"], row["name"], on, ", ".join(map(str, row["ranks"])), *sizes))
    head = ("kind", "name", "elements on", "rank", "trainable", "total")
    yield Part("Parameters", head=head, rows=tuple(rows))
