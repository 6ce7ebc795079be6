"""Draw the reallocations of one or several `train-dyrealloc` runs, and compare what they chose.

  python tools/plot_realloc.py RUN                      draws the run's two pictures again
  python tools/plot_realloc.py RUN_A RUN_B --output DIR  draws the timelines side by side, and prints a table

This works for a run that has not finished, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from tools.cli import Parser, check_different, run

from rich.table import Table

from actions.result.pictures import timeline
from actions.run.console import say
from actions.train_dyrealloc import TIMELINE_PICTURE, draw
from heterolora.choosing import history
from heterolora.choosing.history import HISTORY, History
from heterolora.common.errors import UserError


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train-dyrealloc")
    pictures = "folder of the pictures (default: the run's; for several runs the current one)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=pictures)
    args = parser.parse_args()
    check_different(args.runs)
    histories = {folder.resolve().name: history.read(folder) for folder in args.runs}
    if len(histories) < len(args.runs):
        histories = {str(folder): history.read(folder) for folder in args.runs}
    if len(args.runs) == 1:
        folder = args.output or args.runs[0]
        _check_folder(folder, args.runs)
        draw(histories.popitem()[1], folder)
        say(f"pictures: {folder}")
        return
    folder = args.output or Path()
    _check_folder(folder, [])
    timeline(folder / TIMELINE_PICTURE, *histories.items())
    say(_comparison(histories))
    say(f"picture: {folder / TIMELINE_PICTURE}")


def _check_folder(folder: Path, own: Sequence[Path]) -> None:
    """Raises UserError if the folder is that of a run whose pictures would be replaced by those of other runs."""
    if (folder / HISTORY).exists() and not any(folder.samefile(run) for run in own):
        raise UserError(f"{folder} is the folder of a run, which has pictures of its own", "give another --output")


def _comparison(histories: dict[str, History]) -> Table:
    """How much each run switched, and how much of its final choice it has in common with the first run."""
    table = Table("run", "reallocations", "on", "of", "never on", "mean churn", "final choice shared with the first")
    first = next(iter(histories.values())).last_on()
    for name, past in histories.items():
        on = past.last_on()
        never = sum(times == 0 for times in past.times_on().values())
        shared = len(on & first) / max(len(on | first), 1)
        counts = (len(past.decisions), len(on), len(past.places), never)
        churn = statistics.mean(past.churn()[1:] or (0.0,))  # the first reallocation switches nothing
        table.add_row(name, *map(str, counts), f"{churn:.1%}", f"{shared:.1%}")
    return table


if __name__ == "__main__":
    run(main)
