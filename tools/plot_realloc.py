"""Draw the reallocations of one or several `train-dyrealloc` runs, and compare what they chose.

  python tools/plot_realloc.py RUN                      the run's two pictures, drawn again
  python tools/plot_realloc.py RUN_A RUN_B --output DIR  one timeline beside the other, and a table

A run that is still going can be drawn too: its history is valid at every moment.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from actions.console import say
from actions.timeline import timeline
from actions.train_dyrealloc import TIMELINE_PICTURE, draw
from heterolora import history
from heterolora.history import History
from tools.cli import Parser, run


def main() -> None:
    args = _arguments()
    histories = {folder.resolve().name: history.read(folder) for folder in args.runs}
    if len(histories) < len(args.runs):
        histories = {str(folder): history.read(folder) for folder in args.runs}
    if len(args.runs) == 1:
        folder = args.output or args.runs[0]
        draw(histories.popitem()[1], folder)
        say(f"pictures: {folder}")
        return
    folder = args.output or Path()
    timeline(folder / TIMELINE_PICTURE, *histories.items())
    say(_comparison(histories))
    say(f"picture: {folder / TIMELINE_PICTURE}")


def _arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train-dyrealloc")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where pictures go (default: the run; here for several)"
    )
    return parser.parse_args()


def _comparison(histories: dict[str, History]) -> Table:
    """Runs by figures: how much moved, and how much of the first run's final choice each other run shares."""
    table = Table("run", "reallocations", "on", "of", "never on", "mean churn", "final choice shared with the first")
    first = next(iter(histories.values())).last_on()
    for name, past in histories.items():
        on = past.last_on()
        never = sum(times == 0 for times in past.times_on().values())
        table.add_row(
            name,
            str(len(past.decisions)),
            str(len(on)),
            str(len(past.places)),
            str(never),
            f"{statistics.mean(past.churn()):.1%}",
            f"{len(on & first) / max(len(on | first), 1):.1%}",
        )
    return table


if __name__ == "__main__":
    run(main)
