"""Make one page of runs: configuration, parameters, curves, metrics, scores and allocations; several runs side by side.

The page is one HTML file with all that it needs, and uses no network. It follows the light or dark theme of the reader.

examples:
  python tools/report.py runs/NAME --output report.html
  python tools/report.py runs/A runs/B runs/C --output comparison.html
  python tools/report.py runs --output all.html
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.cli import Parser, add_overwrite, begins_with, check_output, run

from actions.result.listing import is_run, run_folders
from actions.run.console import note, say
from heterolora.common.files import write_text


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs and write the page. Raises UserError if a folder is no run or a file is wrong."""
    parser = Parser(__doc__)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="run folders, such as runs/NAME, or a folder of runs"
    )
    page = Path("report.html")
    parser.add_argument("--output", type=Path, default=page, metavar="FILE", help="the page (default: report.html)")
    add_overwrite(parser)
    args = parser.parse_args(arguments)

    from tools.reporting.page import MARK, render
    from tools.reporting.run import read_runs

    folders = chosen_runs(args.runs)
    read = (file for folder in folders for file in folder.rglob("*") if file.suffix != ".html")
    check_output(args.output, read, begins_with(MARK), args.overwrite)
    runs = read_runs(folders)
    for found in runs:
        if found.missing_figures:
            note(f"{found.name} {found.missing_figures}")
    write_text(args.output, render(runs))
    say(f"report: {args.output}")


def chosen_runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders that the paths name, one by one or as a folder of runs. What is neither is left out with a note.

    A path that is not there, or nothing but such paths, stays, so that reading it says what is wrong.
    """
    found: list[Path] = []
    left_out: list[Path] = []
    for path in paths:
        runs = [path] if is_run(path) or not path.exists() else run_folders(path) if path.is_dir() else []
        found += runs
        left_out += [] if runs else [path]
    for path in left_out if found else ():
        note(f"{path} is no run, and is left out")
    return found or left_out


if __name__ == "__main__":
    run(main)
