"""The rate that --learning-rate auto chooses, against the best of the five rates that it tries.

For each task and seed, one run with `auto` and a whole run with each rate. `behind` is the final validation loss of the
chosen rate less that of the best one. Without folders the tasks are toy data with the tiny OPT model of this program.

example:
  python -m benchmarks learning-rate --data data --classifier minilm --language-model smollm --seeds 10 --max-steps 300
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.cli import whole_number

from rich.table import Table

from actions.run.console import say
from benchmarks import measure
from heterolora.common.errors import UserError
from main import main
from options.optimization import RATES
from options.ranges import at_least

CLOSE = 0.02  # in loss

_TOY = ("toy_nli", "toy_sentiment", "toy_lm")
_CLASSES, _TEXT = ("rte", "sst2"), ("wikitext2",)


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
        return self.losses.get(self.chosen, float("inf")) - self.losses[self.best]


def add_options(parser: argparse.ArgumentParser) -> None:
    number = whole_number(at_least(1))
    parser.add_argument("--seeds", type=number, default=3, metavar="N", help="seeds of each task (default: 3)")
    parser.add_argument("--max-steps", type=number, metavar="N", help="optimizer steps of a run; by default its epochs")
    parser.add_argument("--batch-size", type=number, default=8, metavar="N", help="rows of a batch (default: 8)")
    parser.add_argument("--max-token-len", type=number, default=128, metavar="N", help="tokens of a row (default: 128)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with rte, sst2 and wikitext2")
    parser.add_argument("--classifier", metavar="MODEL", help="a RoBERTa for rte and sst2")
    parser.add_argument("--language-model", metavar="MODEL", help="a Llama for wikitext2")


def run(args: argparse.Namespace) -> None:
    say(measure.heading(args, "the rate of auto against the best of five rates"))
    results = []
    with TemporaryDirectory() as folder:
        for name, options in _tasks(args).items():
            for seed in range(args.seeds):
                results.append(_result(name, seed, [*options, *_common(args)], Path(folder)))
                say(table(results))
    close = sum(result.behind <= CLOSE for result in results)
    say(f"{close} of {len(results)} are within {CLOSE:g} of the best rate")


def table(results: list[Result]) -> Table:
    made = Table("task", "seed", "chosen", "its loss", "best", "its loss", "behind")
    for each in results:
        losses = (each.losses.get(rate) for rate in (each.chosen, each.best))
        own, best = ("diverged" if loss is None else f"{loss:.4f}" for loss in losses)
        made.add_row(each.task, str(each.seed), f"{each.chosen:g}", own, f"{each.best:g}", best, f"{each.behind:+.4f}")
    return made


def _tasks(args: argparse.Namespace) -> dict[str, list[str]]:
    """The options of each task. Raises UserError for models without data."""
    if args.data is None:
        if args.classifier or args.language_model:
            raise UserError("--classifier or --language-model is given without --data", "give the folder of their data")
        return {name: ["--model", "opt_lora", "--dataset", name] for name in _TOY}
    asked = [("roberta_lora", args.classifier, _CLASSES), ("llama_lora", args.language_model, _TEXT)]
    return {
        name: ["--model", model, "--load", load, "--dataset", name, "--dataset-saved-path", str(args.data / name)]
        for model, load, names in asked
        if load is not None
        for name in names
    }


def _common(args: argparse.Namespace) -> Iterator[str]:
    accelerator = "cpu" if args.device.type == "cpu" else "gpu"
    yield from ("--accelerator", accelerator, "--logger", "none", "--measured", "last")
    yield from ("--batch-size", str(args.batch_size), "--max-token-len", str(args.max_token_len))
    if args.max_steps is not None:
        yield from ("--max-steps", str(args.max_steps))


def _result(task: str, seed: int, options: list[str], folder: Path) -> Result:
    def final(rate: str) -> tuple[float, float] | None:
        """The rate and the final validation loss of a run; None if it diverged."""
        project = f"{task}-{seed}-{rate}"
        named = ("--learning-rate", rate, "--seed", str(seed), "--project-dir", str(folder), "--project", project)
        if main(["train", *options, *named]):
            return None
        used = tomllib.loads((folder / project / "config.toml").read_text(encoding="utf-8"))["learning_rate"]
        splits = json.loads((folder / project / "metrics.json").read_text(encoding="utf-8"))["metrics"]
        return used, next(values["loss"] for split, values in splits.items() if split.startswith("validation"))

    found = final("auto")
    if found is None:
        raise UserError(f"--learning-rate auto fails on {task} with seed {seed}", "see its output above")
    others = [final(str(rate)) for rate in RATES if rate != found[0]]
    return Result(task, seed, found[0], dict(each for each in (found, *others) if each is not None))
