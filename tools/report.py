"""Make one page of runs: configuration, parameters, curves, metrics, scores and allocations; several runs side by side.

The page is one HTML file that needs nothing else: no network, no script. It follows the reader's light or dark theme.

examples:
  python tools/report.py runs/NAME --output report.html
  python tools/report.py runs/A runs/B runs/C --output comparison.html
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for `python tools/…` from anywhere

from actions.console import note, say
from heterolora.files import write_text
from tools.cli import Parser, run
from tools.reporting.page import render
from tools.reporting.run import read_runs


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, write the page.

    Raises:
        UserError: a folder is no run, a file of a run can't be read, or the page can't be written.
    """
    parser = Parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, such as runs/NAME")
    parser.add_argument(
        "--output", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)"
    )
    args = parser.parse_args(arguments)
    runs = read_runs(args.runs)
    for found in runs:
        if found.missing_figures:
            note(f"{found.name} {found.missing_figures}")
    write_text(args.output, render(runs))
    say(f"report: {args.output}")


if __name__ == "__main__":
    run(main)
