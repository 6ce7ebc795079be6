"""The runs of HeteroLoRA on the toy data, each an ordinary command."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

import main as program
from actions.run.console import say
from actions.run.run_folder import ADAPTER, METRICS
from tools import realloc_lora_rank

DATA = "toy_nli"

BUDGET = 1152  # LoRA parameters: a quarter of rank 1 in every place

MODEL = ("--model", "opt_lora", "--dataset", DATA, "--task", "classification", "--batch-size", "32")
# The defaults are for much larger models, and this one needs a larger rate.
RECIPE = ("--learning-rate", "4e-3", "--max-epochs", "4")


class Result(NamedTuple):
    """The test accuracy, and the LoRA parameters at the end."""

    accuracy: float
    parameters: int | None = None


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
        """Run one command of the program. If it fails, this program exits with its code."""
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
