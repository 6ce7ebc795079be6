"""The rate that --learning-rate auto chooses, against the best of the five rates that it tries.

For each seed, one run with `auto` and a whole run with each other rate. `behind` is the final validation loss of the
chosen rate less that of the best one. What follows `--` are options of `train`. Without any, the tasks are toy data
with the tiny OPT model of this program.

A trial of `auto` that is a whole run and measures all validation rows is not repeated: its loss is that of the run with
its rate. It counts as such if the run with the chosen rate ends with the loss of its own trial.

With --output, a run that is finished there is not repeated, so that an interrupted benchmark goes on.

example:
  python -m benchmarks learning-rate --seeds 10 -- --model roberta_lora --load minilm --dataset sst2 --max-steps 300
"""

from __future__ import annotations

import argparse
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tools.cli import whole_number

from rich.table import Table

from actions.run.console import say
from benchmarks import measure
from heterolora.common.errors import UserError
from main import main
from options.optimization import RATES
from options.ranges import at_least

CLOSE = 0.02  # in loss
_EQUAL = 1e-4  # of a trial and the run with its rate: the rows are the same, and their sums have other orders

_TOY = {name: ("--model", "opt_lora", "--dataset", name) for name in ("toy_nli", "toy_sentiment", "toy_lm")}


@dataclass(frozen=True)
class Result:
    """The final validation losses of a task and seed, by rate. A run that diverged has none."""

    task: str
    seed: int
    chosen: float
    losses: Mapping[float, float]

    @property
    def best(self) -> float:
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def behind(self) -> float:
        return self.losses.get(self.chosen, math.inf) - self.losses[self.best]


def add_options(parser: argparse.ArgumentParser) -> None:
    number = whole_number(at_least(1))
    parser.add_argument("--seeds", type=number, default=3, metavar="N", help="seeds of each task (default: 3)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="keep the runs here, and go on with those there")
    parser.add_argument("train", nargs="*", metavar="-- OPTION", help="options of train; by default three toy tasks")


def run(args: argparse.Namespace) -> None:
    say(measure.heading(args, "the rate of auto against the best of five rates"))
    tasks = {"task": tuple(args.train)} if args.train else _TOY
    results = []
    with TemporaryDirectory() as temporary:
        for name, options in tasks.items():
            for seed in range(args.seeds):
                found = _result(name, seed, (*options, *_common(args)), args.output or Path(temporary))
                results.append(found)
                say(table(results))
    close = sum(result.behind <= CLOSE for result in results)
    say(f"{close} of {len(results)} are within {CLOSE:g} of the best rate")


def table(results: list[Result]) -> Table:
    """The losses of all rates, and how far the chosen one is behind the best."""
    made = Table("task", "seed", *(f"{rate:g}" for rate in RATES), "chosen", "behind")
    for each in results:
        losses = (f"{each.losses[rate]:.4f}" if rate in each.losses else "diverged" for rate in RATES)
        made.add_row(each.task, str(each.seed), *losses, f"{each.chosen:g}", f"{each.behind:.4f}")
    return made


def _common(args: argparse.Namespace) -> tuple[str, ...]:
    accelerator = "cpu" if args.device.type == "cpu" else "gpu"
    return ("--accelerator", accelerator, "--logger", "none", "--measured", "last")


def _result(task: str, seed: int, options: Sequence[str], folder: Path) -> Result:
    def finished(rate: str) -> Path | None:
        """The folder of the run; None if it diverged."""
        project = f"{task}-{seed}-{rate}"
        made = folder / project
        named = ("--learning-rate", rate, "--seed", str(seed), "--project-dir", str(folder), "--project", project)
        if (made / "metrics.json").exists() or not main(["train", *options, *named, "--overwrite"]):
            return made
        return None

    auto = finished("auto")
    if auto is None:
        raise UserError(f"--learning-rate auto fails on {task} with seed {seed}", "see its output above")
    chosen = tomllib.loads((auto / "config.toml").read_text(encoding="utf-8"))["learning_rate"]
    losses = of_trials(_json(auto / "run.json")["trials"], chosen, _loss(auto))
    for rate in RATES:
        if rate not in losses and (made := finished(f"{rate:g}")):
            losses[rate] = _loss(made)
    return Result(task, seed, chosen, {rate: loss for rate, loss in losses.items() if loss is not None})


def of_trials(trials: Sequence[Mapping[str, Any]], chosen: float, loss: float) -> dict[float, float | None]:
    """The losses of runs by rate: of all rates if the trials are whole runs, else of the chosen one.

    None stands for a trial that diverged. `loss` is that of the run with the chosen rate.
    """
    of_trials = {trial["learning_rate"]: trial["loss"] for trial in trials}
    whole = len(trials) == len(RATES) == len(of_trials)
    same = whole and of_trials[chosen] is not None and abs(of_trials[chosen] - loss) <= _EQUAL
    return of_trials | {chosen: loss} if same else {chosen: loss}


def _loss(folder: Path) -> float:
    """The loss on the validation split at the end of a run."""
    splits = _json(folder / "metrics.json")["metrics"]
    return next(values["loss"] for split, values in splits.items() if split.startswith("validation"))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
