"""Reading and checking own data with many labels, with twice as many, and with four times as many.

Each label has four rows, so that the cost of rows grows with the labels. It is linear if the ratios are about 2 and 4.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from tools.cli import whole_number

from actions.run.console import say
from benchmarks import measure
from dataset.batching.module import TextDataModule
from dataset.reading.own import describe
from options.data import DataOptions, OwnDataOptions
from options.ranges import at_least

_ROWS = 4  # of a label


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=5)
    count = whole_number(at_least(2))
    parser.add_argument(
        "--labels", type=count, default=4500, metavar="N", help="labels at first (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    say(measure.heading(args, f"reading {_ROWS} rows of each label"))
    sizes = [args.labels * times for times in (1, 2, 4)]
    with tempfile.TemporaryDirectory() as folder:
        steps = {f"{size:,} labels": partial(_read, _written(Path(folder), size)) for size in sizes}
        say(measure.by_turns(steps, args.rounds, args.device, warm_up=1).table(next(iter(steps))))


def _written(folder: Path, labels: int) -> Path:
    path = folder / f"{labels}.jsonl"
    rows = ({"text": f"row {row}", "label": f"label {row % labels}"} for row in range(_ROWS * labels))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def _read(path: Path) -> None:
    spec, _ = describe(str(path), OwnDataOptions(), None, cache=False)
    TextDataModule(spec, DataOptions(disable_dataset_cache=True))
