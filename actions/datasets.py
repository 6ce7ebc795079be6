"""`datasets`: list the data sets that have an entry."""

from __future__ import annotations

import json
from collections.abc import Sequence

from actions.command.parse import Parser
from actions.run.console import say
from dataset import registry
from dataset.spec import DatasetSpec
from heterolora.common.columns import in_columns
from options.actions import DATASETS

_COLUMNS = ("--dataset", "task", "metrics", "content")


def main(arguments: Sequence[str]) -> None:
    """Print a table, or JSON."""
    parser = Parser(prog=f"python -m main {DATASETS}", description="List the data sets that have an entry.")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")
    args = parser.parse_args(arguments)
    specs = registry.specs().values()
    if args.json:
        print(json.dumps([_values(spec) for spec in specs], indent=2))
        return
    say(in_columns([_COLUMNS, *((spec.name, spec.task, ", ".join(spec.metrics), spec.summary) for spec in specs)]))
    say("--dataset also takes own data, see docs/own-data.md.")


def _values(spec: DatasetSpec) -> dict[str, object]:
    return {"name": spec.name, "task": spec.task, "metrics": list(spec.metrics), "content": spec.summary}
