"""Run the whole program on the built-in toy data: no network, no GPU.

First two baselines: a bag-of-words classifier, and the frozen model with a linear head. Then LoRA in every place; then
the scores of all places and LoRA in the best ones (static); then LoRA in places that are chosen again during training
(dynamic). All three have about as many parameters. Each run is an ordinary command, which is printed; its folder stays.

example:
  python tools/quickstart.py
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.cli import Parser, run

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from transformers import AutoModel, AutoTokenizer

import main as program
from actions.console import say
from actions.run_folder import METRICS
from dataset import registry
from dataset.source import DATA_SEED
from tools import realloc_lora_rank

TOY_OPT = Path(__file__).resolve().parents[1] / "model" / "toy_opt"
DATA = "toy_nli"

SHARE, RANK = 0.25, 8  # a quarter of the places at rank 8 ...
UNIFORM_RANK = int(SHARE * RANK)  # ... or all of them at a quarter of it

MODEL = ("--model", "opt_lora", "--dataset", DATA, "--task", "classification", "--pretrained", "--batch-size", "32")
# The defaults are for much larger models, and this one needs a larger rate. At 5e-3 it learns from some seeds only.
RECIPE = ("--learning-rate", "2e-3", "--lr-scheduler", "linear", "--max-epochs", "8")


@dataclass(frozen=True)
class TableLine:
    """A line of the final table: what ran, its test accuracy, its seconds, and the LoRA parameters at the end."""

    title: str
    accuracy: float
    seconds: float
    parameters: int | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and print a table. Raises UserError if an argument is wrong."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--project-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (default: runs)")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything but the data (default: 0)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # more threads do not make so small a model faster
    runs = Runs(args.project_dir / time.strftime("quickstart_%Y%m%d-%H%M%S"), args.seed)
    say(table([bag_of_words(), frozen(), runs.uniform(), runs.static(), runs.dynamic()]))
    say("pictures:")
    for picture in sorted(runs.folder.glob("*/*.png")):
        say(f"  {picture}")
    say(f"all runs: {runs.folder}")


# ---- baselines


def bag_of_words() -> TableLine:
    """Logistic regression on the counts of words and word pairs of both sentences."""
    classifier = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    return _baseline("bag of words", classifier, lambda rows: [f"{r['sentence1']} {r['sentence2']}" for r in rows])


def frozen() -> TableLine:
    """The frozen model with a linear head: logistic regression on the last token's hidden state."""
    return _baseline("frozen model, linear head", LogisticRegression(C=100, max_iter=5000), _hidden)


def _baseline(title: str, classifier: LogisticRegression, features: Callable[[list[dict]], Sequence]) -> TableLine:
    start = time.perf_counter()
    train, test = (registry.get(DATA).generate(split, DATA_SEED) for split in ("train", "test"))
    classifier.fit(features(train), [row["label"] for row in train])
    accuracy = classifier.score(features(test), [row["label"] for row in test])
    return TableLine(title, accuracy, time.perf_counter() - start)


@torch.no_grad()
def _hidden(rows: list[dict]) -> np.ndarray:
    """The last token's final hidden state of every row (rows, hidden): the input of a classification head."""
    tokenizer = AutoTokenizer.from_pretrained(TOY_OPT, padding_side="left")
    network = AutoModel.from_pretrained(TOY_OPT).eval()
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

    def uniform(self) -> TableLine:
        """LoRA in every place, at a low rank."""
        configuration = self.folder / "uniform.toml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        lines = ('granularity = "network"', "[default]", f"r = {UNIFORM_RANK}", f"lora_alpha = {2 * UNIFORM_RANK}")
        configuration.write_text("\n".join(lines) + "\n")
        return self._train("uniform LoRA", "uniform", "train", "--lora-config", configuration)

    def static(self) -> TableLine:
        """Scores, then LoRA in the best places with at most the parameters of uniform LoRA."""
        start = time.perf_counter()
        self._run("imp-test", "--importance-test-name", "grad_norm", "--project", "scores")
        chosen, budget = self.folder / "static.toml", _parameters(self.folder / "uniform")
        scores = self.folder / "scores" / "scores.toml"
        options = [str(word) for word in (scores, "--parameters", budget, "--output", chosen)]
        _show("tools/realloc_lora_rank.py", options)
        realloc_lora_rank.main(options)
        scored = time.perf_counter() - start
        return self._train("static HeteroLoRA", "static", "train", "--lora-config", chosen, before=scored)

    def dynamic(self) -> TableLine:
        """LoRA in places that are chosen five times an epoch, by the gradients of the training batches."""
        choice = ("--turn-on-percentile", SHARE, "--imp-source", "training", "--imp-limit-test-batches", 8)
        return self._train("dynamic HeteroLoRA", "dynamic", "train-dyrealloc", *choice)

    def _train(self, title: str, project: str, action: str, *more: object, before: float = 0.0) -> TableLine:
        start = time.perf_counter()
        self._run(action, *RECIPE, *more, "--project", project)
        made = self.folder / project
        accuracy = json.loads((made / METRICS).read_text(encoding="utf-8"))["metrics"]["test"]["accuracy"]
        return TableLine(title, accuracy, before + time.perf_counter() - start, _parameters(made))

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
    tensors = load_file(run_folder / "adapter" / "adapter_model.safetensors")
    return sum(tensor.numel() for name, tensor in tensors.items() if "lora_" in name)


def table(lines: Sequence[TableLine]) -> Table:
    made = Table("", title=f"{DATA}: does the description say yes to the question after it?")
    for column in ("LoRA parameters", "test accuracy", "seconds"):
        made.add_column(column, justify="right")
    for line in lines:
        parameters = "" if line.parameters is None else f"{line.parameters:,}"
        made.add_row(line.title, parameters, f"{line.accuracy:.1%}", f"{line.seconds:.0f}")
    return made


if __name__ == "__main__":
    run(main)
