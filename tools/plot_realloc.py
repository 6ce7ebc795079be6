"""Draw the reallocations of one or several `train-dyrealloc` runs, and compare what they chose.

  python tools/plot_realloc.py RUN                      draws the run's two pictures again
  python tools/plot_realloc.py RUN_A RUN_B --output DIR  draws the timelines side by side, and prints a table

This works for a run that has not finished, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.cli import Parser, add_overwrite, begins_with, check_different, check_output, run

from actions.run.console import say
from heterolora.common.errors import UserError


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the histories and draw them. Raises UserError if a folder has none, or has pictures of its own."""
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders of train-dyrealloc")
    pictures = "folder of the pictures (default: the run's; for several runs the current one)"
    parser.add_argument("--output", type=Path, metavar="DIR", help=pictures)
    add_overwrite(parser)
    args = parser.parse_args(arguments)
    check_different(args.runs)

    from heterolora.choosing import history
    from heterolora.pictures.drawing import save
    from heterolora.pictures.of_run import TIMELINE_PICTURE, draw, of_history
    from heterolora.pictures.timeline import Timeline
    from tools.reporting.parts.reallocations import compared
    from tools.reporting.run import names_of

    histories = dict(zip(names_of(args.runs), map(history.read, args.runs), strict=True))
    if len(args.runs) == 1:
        folder = args.output or args.runs[0]
        ((name, only),) = histories.items()
        made = of_history(only, name)
        _check_folder(folder, args.runs, made, args.overwrite)
        draw(made, folder)
        say(f"pictures: {folder}")
        return
    folder = args.output or Path()
    _check_folder(folder, [], [TIMELINE_PICTURE], args.overwrite)
    save(folder / TIMELINE_PICTURE, *(Timeline(name, past) for name, past in histories.items()))
    say(compared(histories).as_table())
    say(f"picture: {folder / TIMELINE_PICTURE}")


def _check_folder(folder: Path, own: Sequence[Path], pictures: Iterable[str], overwrite: bool) -> None:
    """Raise UserError if files of the folder would be replaced that are of another run, or not of this tool."""
    from heterolora.choosing.history import HISTORY
    from heterolora.pictures.drawing import MADE_BY

    if os.path.exists(folder / HISTORY):
        if not any(folder.samefile(run) for run in own):
            raise UserError(f"{folder} is the folder of a run, which has pictures of its own", "give another --output")
        return
    for name in pictures:
        check_output(folder / name, (), begins_with(MADE_BY), overwrite)


if __name__ == "__main__":
    run(main)
