"""Answer whether a choice of places helps: compare methods at equal parameters, each at its own best learning rate.

STUDY.toml names the arms, the tasks, the budgets, the learning rates and the seeds:

  parameters = [9216]                  # LoRA parameters of every arm
  seeds = [0, 1, 2, 3, 4]
  learning_rates = [1e-3, 2e-3, 4e-3]  # each arm gets the best of them, by rows that the measurement leaves out
  tuning = "halving"                   # stop the worse rates early; by default "grid": train all of them completely
  measure = "accuracy"                 # or "loss"
  [options]                            # of every run, as in a --config file
  max_epochs = 4
  [tasks.toy]
  dataset = "toy_nli"
  [arms.uniform]                       # the first arm is the baseline
  method = "uniform"
  [arms.grad_norm]
  method = "grad_norm"                 # a heuristic; also: drawn, dynamic, peft:eva, peft:adalora, ...
  rank = 8

With question = "smallest" the arms have sizes of their own, and the study finds the smallest one that is not worse than
the first, the largest one. --question smallest needs no file: it measures a first run, and plans the arms, learning
rates and seeds into --hours. Its other options are those of every run.

The study writes report.html, report.md and results.csv into its folder, and keeps every run as an ordinary run folder.
Start it again to continue it after an interruption: finished runs are not repeated.

examples:
  python tools/study.py STUDY.toml --output studies/NAME --workers 2
  python tools/study.py --question smallest --hours 1 --model llama_lora --load FOLDER --dataset wikitext2
  python tools/study.py STUDY.toml --output studies/NAME --executor slurm --workers 20 --slurm gpus_per_node=1
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.cli import Parser, add_overwrite, check_output, real, run, whole_number

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from actions.run.console import note, say
from actions.run.endings import FAILED
from actions.run.in_use import in_use
from heterolora.common.checks import ABOVE_0
from heterolora.common.errors import UserError
from heterolora.common.files import check_writable, write_text
from options.ranges import at_least

if TYPE_CHECKING:
    from tools.studies.spec import Study

REPORTS = ("results.csv", "report.md", "report.html")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of the study, and write its report. Raises UserError if the study file is wrong."""
    args, words = _parsed(sys.argv[1:] if arguments is None else arguments)
    if args.slurm and args.executor == "here":
        raise UserError("--slurm has no effect with --executor here", "add --executor slurm")

    from tools.studies.data import check_data
    from tools.studies.execution import Execution
    from tools.studies.page import markdown, render
    from tools.studies.sentence import answer
    from tools.studies.spec import read_study
    from tools.studies.table import table

    if args.question is None:
        study, folder = read_study(args.study), args.output or Path("studies") / args.study.stem
    else:
        study, folder = _asked(args, words)
    execution = Execution(study, Path(os.path.realpath(folder)), args.workers, args.executor, _pairs(args.slurm))
    if args.report_only:
        if not execution.jobs_folder.is_dir():
            raise UserError(f"{folder} holds no study", "give the --output of a study that was started")
        comparisons = execution.comparisons(run_jobs=False, track=_progress)
    else:
        check_writable(folder, "give another --output")
        execution.commands.check()
        for name in () if execution.jobs_folder.is_dir() else REPORTS:
            check_output(folder / name, (), lambda path: False, args.overwrite)
        folder.mkdir(parents=True, exist_ok=True)
        with in_use(folder):
            check_data(study, folder)
            comparisons = execution.comparisons(run_jobs=True, track=_progress)
    for failed in execution.failures:
        note(f"{failed.name} failed with code {failed.code}: {failed.error}")
    texts = (
        table([*execution.parts.values(), *execution.measured.values()], study),
        markdown(study, comparisons, execution),
        render(study, comparisons, execution),
    )
    for name, text in zip(REPORTS, texts, strict=True):
        write_text(folder / name, text)
    for comparison in comparisons:
        say(f"{comparison.heading}: {answer(study, comparison)}")
    say(f"report: {folder / 'report.html'}, report.md; all runs: results.csv")
    if execution.failures:
        raise SystemExit(FAILED)


def _parsed(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments, and with --question the options of every run."""
    asks = any(word.split("=")[0] == "--question" for word in arguments)
    parser = Parser(__doc__)
    add = parser.add_argument
    if not asks:  # the value of an option of the runs would be taken for it
        add("study", type=Path, metavar="STUDY.toml", help="the study file")
    add("--question", choices=("smallest",), help="plan a study without a file; further options are those of every run")
    add("--hours", type=real(ABOVE_0), metavar="X", help="time that --question may take (default: 1)")
    add("--measure", choices=("loss", "accuracy"), help="what --question compares (default: loss)")
    add("--resolve", type=real(ABOVE_0), metavar="X", help="the difference that matters to --question (default: 0.01)")
    add("--output", type=Path, metavar="DIR",
        help="folder of the study (default: in studies/, named after the file or the data)")  # fmt: skip
    add("--workers", type=whole_number(at_least(1)), default=1, metavar="N", help="runs at a time (default: 1)")
    add("--executor", choices=("here", "local", "slurm"), default="here",
        help="here: child processes; slurm: job arrays through submitit; local: submitit on this machine, "
        "where it gives a job no GPU without --slurm gpus_per_node=1")  # fmt: skip
    add("--slurm", nargs="*", default=[], metavar="KEY=VALUE", help="parameters of submitit, such as timeout_min=60")
    add_overwrite(parser)
    add("--report-only", action="store_true", help="run nothing: report the runs that are finished")
    args, words = parser.parse_known_args(arguments)
    if not asks:
        if words:
            parser.error(f"unrecognized arguments: {' '.join(words)}")
        for name in ("hours", "measure", "resolve"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name} has no effect without --question", "leave it out, or give --question")
    return args, words


def _asked(args: argparse.Namespace, words: Sequence[str]) -> tuple[Study, Path]:
    """The planned study of --question, and its folder."""
    from tools.studies.question import STUDY, Asked, options_of, planned

    asked = Asked(args.question, args.measure or "loss", args.resolve or 0.01, args.hours or 1.0, options_of(words))
    folder = args.output or asked.folder
    if args.report_only and not (folder / STUDY).is_file():
        raise UserError(f"{folder} holds no study", "give the --output of a study that was started")
    check_writable(folder, "give another --output")
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(folder):
        return planned(asked, folder, args.workers, _progress), folder


def _pairs(texts: Sequence[str]) -> dict[str, Any]:
    """`--slurm KEY=VALUE` as numbers where they are numbers."""
    pairs = dict(text.partition("=")[::2] for text in texts)
    if not all(pairs.values()):
        raise UserError(f"--slurm {' '.join(texts)} can't be read", "give KEY=VALUE, such as timeout_min=60")
    return {key: _value(value) for key, value in pairs.items()}


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        with suppress(ValueError):
            if str(value := kind(text)) == text:  # 0123 is a name
                return value
    return text


def _progress(items: Iterator[Any], total: int, what: str) -> Iterator[Any]:
    """Yield the items while a bar shows how many are done, and the time left."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    # The speed is that of all runs so far. By default, rich forgets those that ended 30 s ago.
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=math.inf) as bar:
        line = bar.add_task(what, total=total)
        for item in items:
            bar.advance(line)
            if bar.disable:
                say(f"{what}: {item.name}, {item.seconds:.0f} s{', failed' if item.failed else ''}")
            yield item


if __name__ == "__main__":
    run(main)
