"""The whole program on the toy world that comes with it: no network, no GPU.

What counts of words and the frozen model can do; LoRA in every place; then the scores of every place, LoRA in the best
places only (static), and LoRA whose places are chosen again and again (dynamic), all of about as many parameters.
Every run is an ordinary command, which is shown, and its folder stays.

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

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for `python tools/…` from anywhere

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
from tools.cli import Parser, run

ROOT = Path(__file__).resolve().parents[1]
TOY_OPT = ROOT / "model" / "toy_opt"
DATA = "toy_nli"

SHARE, RANK = 0.25, 8  # a quarter of the places at rank 8 ...
UNIFORM_RANK = int(SHARE * RANK)  # ... or all of them at a quarter of it

MODEL = ("--model", "opt_lora", "--dataset", DATA, "--task", "classification", "--pretrained", "--batch-size", "32")
# The defaults are for models a thousand times as large; this one wants more. At 5e-3 it learns from some seeds only.
RECIPE = ("--learning-rate", "2e-3", "--lr-scheduler", "linear", "--max-epochs", "8")


@dataclass(frozen=True)
class Result:
    """A line of the table.

    Attributes:
        title: what was done.
        accuracy: on the test split.
        seconds: that it took.
        parameters: of the LoRA elements that are on at the end.
    """

    title: str
    accuracy: float
    seconds: float
    parameters: int | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all of it and print a table.

    Raises:
        UserError: a wrong argument.
    """
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--project-dir", type=Path, default=Path("runs"), metavar="DIR", help="folder of the runs (default: runs)")
    add("--seed", type=int, default=0, metavar="N", help="of everything random but the data (default: 0)")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # so small a model gains nothing by more, and loses where other programs run
    folder = args.project_dir / time.strftime("quickstart_%Y%m%d-%H%M%S")
    story = Story(folder, args.seed)
    results = [bag_of_words(), frozen(), story.uniform(), story.static(), story.dynamic()]
    say(table(results))
    say("pictures:")
    for picture in sorted(folder.glob("*/*.png")):
        say(f"  {picture}")
    say(f"all runs: {folder}")


# ---- what LoRA has to beat


def bag_of_words() -> Result:
    """Logistic regression on the counts of words and pairs of words of both sentences."""
    return _linear(
        "linear, on counts of words",
        make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000)),
        lambda rows: [f"{row['sentence1']} {row['sentence2']}" for row in rows],
    )


def frozen() -> Result:
    """The frozen model with the best linear head: logistic regression on the last token's hidden state."""
    return _linear("frozen model, linear head", LogisticRegression(C=100, max_iter=5000), _hidden)


def _linear(title: str, classifier: LogisticRegression, features: Callable[[list[dict]], Sequence]) -> Result:
    start = time.perf_counter()
    generate = registry.get(DATA).generate
    train, test = generate("train", DATA_SEED), generate("test", DATA_SEED)
    classifier.fit(features(train), [row["label"] for row in train])
    accuracy = classifier.score(features(test), [row["label"] for row in test])
    return Result(title, accuracy, time.perf_counter() - start)


@torch.no_grad()
def _hidden(rows: list[dict]) -> np.ndarray:
    """The last token's final hidden state of every row (rows, hidden): what a classification head sees."""
    tokenizer = AutoTokenizer.from_pretrained(TOY_OPT, padding_side="left")
    network = AutoModel.from_pretrained(TOY_OPT).eval()
    states = []
    for first in range(0, len(rows), 200):
        some = rows[first : first + 200]
        pairs = [row["sentence1"] for row in some], [row["sentence2"] for row in some]
        states.append(network(**tokenizer(*pairs, padding=True, return_tensors="pt")).last_hidden_state[:, -1])
    return torch.cat(states).numpy()


# ---- HeteroLoRA


class Story:
    """The runs, in order, in `folder`; each of them needs those before it."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.shared = (*MODEL, "--seed", str(seed), "--project-dir", str(folder))

    def uniform(self) -> Result:
        """LoRA in every place, at a low rank."""
        configuration = self.folder / "uniform.toml"
        configuration.parent.mkdir(parents=True, exist_ok=True)
        lines = ('granularity = "network"', "[default]", f"r = {UNIFORM_RANK}", f"lora_alpha = {2 * UNIFORM_RANK}")
        configuration.write_text("\n".join(lines) + "\n")
        return self._train("uniform LoRA", "uniform", "train", "--lora-config", configuration)

    def static(self) -> Result:
        """Scores, the best places within the parameters that uniform LoRA has, and training there."""
        start = time.perf_counter()
        self._do("imp-test", "--importance-test-name", "grad_norm", "--project", "scores")
        chosen = self.folder / "static.toml"
        budget = str(_parameters(self.folder / "uniform"))
        options = [str(self.folder / "scores" / "scores.toml"), "--parameters", budget, "--output", str(chosen)]
        _show("tools/realloc_lora_rank.py", options)
        realloc_lora_rank.main(options)
        scored = time.perf_counter() - start
        return self._train("static HeteroLoRA", "static", "train", "--lora-config", chosen, before=scored)

    def dynamic(self) -> Result:
        """Places chosen anew five times an epoch, by the gradients of the training batches."""
        choice = ("--turn-on-percentile", SHARE, "--imp-source", "training", "--imp-limit-test-batches", 8)
        return self._train("dynamic HeteroLoRA", "dynamic", "train-dyrealloc", *choice)

    def _train(self, title: str, project: str, action: str, *more: object, before: float = 0.0) -> Result:
        start = time.perf_counter()
        self._do(action, *RECIPE, *more, "--project", project)
        made = self.folder / project
        accuracy = json.loads((made / METRICS).read_text(encoding="utf-8"))["metrics"]["test"]["accuracy"]
        return Result(title, accuracy, before + time.perf_counter() - start, _parameters(made))

    def _do(self, action: str, *more: object) -> None:
        """One command of the program; a run that fails ends this program with its code."""
        command = [action, *self.shared, *map(str, more)]
        _show("-m main", command)
        if code := program.main(command):
            sys.exit(code)


def _show(program_name: str, command: Sequence[str]) -> None:
    say(f"\n$ python {program_name} {shlex.join(command)}")


def _parameters(run_folder: Path) -> int:
    """Of the LoRA elements that were on when a run ended."""
    tensors = load_file(run_folder / "adapter" / "adapter_model.safetensors")
    return sum(tensor.numel() for name, tensor in tensors.items() if "lora_" in name)


def table(results: Sequence[Result]) -> Table:
    """A line for each result."""
    made = Table(title=f"{DATA}: does the description say yes to the question after it?")
    made.add_column("")
    for column in ("LoRA parameters", "test accuracy", "seconds"):
        made.add_column(column, justify="right")
    for result in results:
        parameters = "" if result.parameters is None else f"{result.parameters:,}"
        made.add_row(result.title, parameters, f"{result.accuracy:.1%}", f"{result.seconds:.0f}")
    return made


if __name__ == "__main__":
    run(main)
