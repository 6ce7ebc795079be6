"""Run the whole program on the built-in toy data: no network, no GPU.

First two baselines: a bag-of-words classifier, and the frozen model with a linear head. Then LoRA with rank 1 in every
place. Then a quarter of these parameters: in random places, in the places that scores choose before training (static),
and in places that are chosen again during training (dynamic). Each run is an ordinary command, which is printed. The
run folders are kept.

example:
  python tools/quickstart.py
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.cli import Parser, run, whole_number

from rich.table import Table

from actions.run.console import say, set_log_level
from actions.run.run_folder import ADAPTER, new_folder
from heterolora.common.files import check_writable
from options.ranges import seed_range


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and print a table. Raises UserError if an argument is wrong."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--project-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (default: runs)")
    seed = "seed of everything but the data (default: 0)"
    add("--seed", type=whole_number(seed_range), default=0, metavar="N", help=seed)
    args = parser.parse_args(arguments)

    import torch

    from heterolora.pictures.of_run import ALLOCATION
    from tools.reporting.run import read_runs
    from tools.toy.baselines import bag_of_words, frozen
    from tools.toy.runs import DATA, Result, Runs

    set_log_level("warning")
    torch.set_num_threads(1)  # more threads do not make so small a model faster
    folder = args.project_dir / time.strftime("quickstart_%Y%m%d-%H%M%S")
    check_writable(folder)
    runs = Runs(new_folder(folder), args.seed)  # another one may start in the same second
    steps: Mapping[str, Callable[[], Result]] = {
        "bag of words": bag_of_words,
        "frozen model, linear head": frozen,
        "LoRA in every place, rank 1": runs.uniform,
        "a quarter of it, random places": runs.random,
        "a quarter of it, static": runs.static,
        "a quarter of it, dynamic": runs.dynamic,
    }
    table = Table("", title=f"{DATA}: does the description say yes to the question after it?")
    for column in ("LoRA parameters", "test accuracy", "seconds"):
        table.add_column(column, justify="right")
    for title, step in steps.items():
        start = time.perf_counter()
        accuracy, parameters = step()
        seconds = time.perf_counter() - start
        table.add_row(title, "" if parameters is None else f"{parameters:,}", f"{accuracy:.1%}", f"{seconds:.0f}")
    say(table)
    say("LoRA at the end:")
    for found in read_runs([runs.folder / name for name in ("uniform", "random", "static", "dynamic")]):
        say(f"  {found.name}: {found.choice}")
    say("pictures:")
    for picture in sorted((*runs.folder.glob("*/*.png"), *runs.folder.glob(f"*/{ADAPTER}/{ALLOCATION}"))):
        say(f"  {picture}")
    say(f"all runs: {runs.folder}")


if __name__ == "__main__":
    run(main)
