"""Run the whole program on the built-in toy data: no network, no GPU.

First two baselines: a bag-of-words classifier, and the frozen model with a linear head. Then LoRA with rank 1 in every
place. Then a quarter of these parameters: in random places, in the places that scores choose before training (static),
and in places that are chosen again during training (dynamic). Each run is an ordinary command, which is printed. The
run folders are kept.

example:
  python tools/quickstart.py
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.cli import Parser, run, whole_number

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModel, AutoTokenizer

import main as program
from actions.request.origin import TOY_BASE
from actions.result.export import ALLOCATION
from actions.run.console import say, set_log_level
from actions.run.run_folder import ADAPTER, METRICS, new_folder
from dataset import registry
from dataset.reading.source import DATA_SEED
from heterolora.common.files import check_writable
from options.ranges import seed_range
from tools import realloc_lora_rank
from tools.reporting.run import read_runs

DATA = "toy_nli"

BUDGET = 1152  # LoRA parameters: a quarter of rank 1 in every place

MODEL = ("--model", "opt_lora", "--dataset", DATA, "--task", "classification", "--batch-size", "32")
# The defaults are for much larger models, and this one needs a larger rate.
RECIPE = ("--learning-rate", "4e-3", "--max-epochs", "4")


class Result(NamedTuple):
    """The test accuracy, and the LoRA parameters at the end."""

    accuracy: float
    parameters: int | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and print a table. Raises UserError if an argument is wrong."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--project-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (default: runs)")
    add(
        "--seed",
        type=whole_number(seed_range),
        default=0,
        metavar="N",
        help="seed of everything but the data (default: 0)",
    )
    args = parser.parse_args(arguments)
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


# ---- baselines


def bag_of_words() -> Result:
    """Logistic regression on the counts of words and word pairs of both sentences."""
    classifier = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    return _baseline(classifier, lambda rows: [f"{row['sentence1']} {row['sentence2']}" for row in rows])


def frozen() -> Result:
    """The frozen model with a linear head: logistic regression on the last token's hidden state."""
    return _baseline(LogisticRegression(C=100, max_iter=5000), _hidden)


def _baseline(classifier: LogisticRegression, features: Callable[[list[dict]], Sequence]) -> Result:
    train, test = (registry.get(DATA).generate(split, DATA_SEED) for split in ("train", "test"))
    classifier.fit(features(train), [row["label"] for row in train])
    return Result(classifier.score(features(test), [row["label"] for row in test]))


@torch.no_grad()
def _hidden(rows: list[dict]) -> np.ndarray:
    """The last token's final hidden state of every row (rows, hidden): the input of a classification head."""
    tokenizer = AutoTokenizer.from_pretrained(TOY_BASE, padding_side="left", trust_remote_code=False)
    network = AutoModel.from_pretrained(TOY_BASE, trust_remote_code=False).eval()
    states = []
    for first in range(0, len(rows), 200):
        some = rows[first : first + 200]
        pairs = [row["sentence1"] for row in some], [row["sentence2"] for row in some]
        states.append(network(**tokenizer(*pairs, padding=True, return_tensors="pt")).last_hidden_state[:, -1])
    return torch.cat(states).numpy()


# ---- HeteroLoRA


class Runs:
    """The runs, in order, in `folder`. Each of them needs those before it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.shared = (*MODEL, "--seed", str(seed), "--project-dir", str(folder))

    def uniform(self) -> Result:
        """LoRA in every place, at the lowest rank."""
        return self._train("uniform", "train", "--rank", 1)

    def random(self) -> Result:
        """LoRA in random places: `constant` gives all places equal scores."""
        return self._chosen("random", "constant", "--rank", 1)

    def static(self) -> Result:
        """LoRA with the ranks that scores choose before training."""
        return self._chosen("static", "spectral", "--policy", "greedy")

    def dynamic(self) -> Result:
        """LoRA in places that are chosen again five times an epoch."""
        choice = ("--rank", 1, "--importance-test-name", "gain", "--imp-limit-test-batches", 8)
        return self._train("dynamic", "train-dyrealloc", *choice, "--budget-parameters", BUDGET)

    def _chosen(self, project: str, heuristic: str, *policy: object) -> Result:
        """Scores, then a configuration that spends the budget on the best, then training."""
        scored = f"{project}_scores"
        self._run("imp-test", "--importance-test-name", heuristic, "--project", scored)
        chosen = self.folder / f"{project}.toml"
        options = [str(self.folder / scored), "--parameters", str(BUDGET), *map(str, policy), "--output", str(chosen)]
        _show("tools/realloc_lora_rank.py", options)
        realloc_lora_rank.main(options)
        return self._train(project, "train", "--lora-config", chosen)

    def _train(self, project: str, action: str, *more: object) -> Result:
        self._run(action, *RECIPE, *more, "--project", project)
        metrics = json.loads((self.folder / project / METRICS).read_text(encoding="utf-8"))["metrics"]
        return Result(metrics["test"]["accuracy"], _parameters(self.folder / project))

    def _run(self, action: str, *more: object) -> None:
        """Runs one command of the program. If it fails, this program exits with its code."""
        command = [action, *self.shared, *map(str, more)]
        _show("-m main", command)
        if code := program.main(command):
            sys.exit(code)


def _show(program_name: str, command: Sequence[str]) -> None:
    say(f"\n$ python {program_name} {shlex.join(command)}")


def _parameters(run_folder: Path) -> int:
    """Parameters of the LoRA elements that were on at the end of a run."""
    tensors = load_file(run_folder / ADAPTER / "adapter_model.safetensors")
    return sum(tensor.numel() for name, tensor in tensors.items() if "lora_" in name)


if __name__ == "__main__":
    run(main)
