"""`runs`: list the runs of a folder, newest first, with the state of each and the command that continues it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from actions.command.parse import Parser
from actions.result.listing import ListedRun, is_run, readable, run_folders
from actions.run.console import note, say
from heterolora.common.columns import in_columns
from heterolora.common.errors import UserError
from options.actions import RUNS, as_started
from options.every import defaults

_COLUMNS = ("name", "action", "model", "data", "parameters", "metric", "state", "started")


def main(arguments: Sequence[str]) -> None:
    """Print a table, or JSON. Raises UserError if the folder is not there."""
    parser = Parser(prog=f"python -m main {RUNS}", description="List the runs of a folder, newest first.")
    default = defaults()["project_dir"]
    parser.add_argument("folder", nargs="?", type=Path, default=default, help=f"folder of runs (default: {default})")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead of a table")
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        raise UserError(f"{args.folder} is no folder", "give the folder of runs, such as runs")
    runs, damaged = readable([args.folder] if is_run(args.folder) else run_folders(args.folder))
    if args.json:
        print(json.dumps([{**asdict(run), "to_continue": _started(run)} for run in runs], indent=2))
        return
    if runs:
        say(in_columns([_COLUMNS, *map(_row, runs)]))
        for run in runs:
            if run.to_continue is not None:
                say(f"to continue {run.name}: {run.to_continue}")
    else:
        say(f"no runs in {args.folder}")
    for text in damaged:
        note(text)


def _started(run: ListedRun) -> str | None:
    return None if run.to_continue is None else as_started(run.to_continue)


def _row(run: ListedRun) -> tuple[str, ...]:
    value = "" if run.value is None else f" {run.value:.4f}"
    return (
        run.name,
        run.action,
        run.model,
        run.dataset,
        "–" if run.parameters is None else f"{run.parameters:,}",
        "–" if run.metric is None else run.metric + value,
        run.state if run.step is None else f"{run.state} at step {run.step:,}",
        f"{datetime.fromtimestamp(run.started):%Y-%m-%d %H:%M}",
    )
