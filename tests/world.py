"""A small world for tests that run whole commands: a pretrained folder, data folders, and the command line itself."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from main import main
from tests.tiny import tiny_network, word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
GOOD, BAD = ("good", "great", "fine"), ("bad", "poor", "dull")
NOUNS = ("film", "play", "song", "book", "meal")


def sentences(rows: int, seed: int) -> list[dict[str, object]]:
    """Rows of an SST-2 whose label follows from one word, so that a tiny model can learn it."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        label = draw.randrange(2)
        filler = " ".join(draw.choice(NOUNS) for _ in range(draw.randrange(1, 6)))
        made.append({"sentence": f"a {draw.choice((BAD, GOOD)[label])} {filler}", "label": label})
    return made


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sst2_folder(folder: Path, train: int = 45, validation: int = 13) -> Path:
    write_jsonl(folder / "train.jsonl", sentences(train, seed=1))
    write_jsonl(folder / "validation.jsonl", sentences(validation, seed=2))
    return folder


def text_folder(folder: Path) -> Path:
    for split, rows, seed in (("train", 40, 1), ("validation", 12, 2), ("test", 12, 3)):
        write_jsonl(folder / f"{split}.jsonl", [{"text": row["sentence"]} for row in sentences(rows, seed)])
    return folder


def summary_folder(folder: Path) -> Path:
    for split, rows, seed in (("train", 24, 1), ("validation", 7, 2), ("test", 7, 3)):
        made = [{"document": row["sentence"], "summary": row["sentence"].split()[1]} for row in sentences(rows, seed)]
        write_jsonl(folder / f"{split}.jsonl", made)
    return folder


def instruction_folder(folder: Path, rows: int) -> Path:
    """Instructions whose responses have 1, 2 or 12 tokens."""
    draw, made = random.Random(0), []
    for _ in range(rows):
        response = " ".join(draw.choice(NOUNS) for _ in range(draw.choice((1, 2, 12))))
        made.append({"instruction": f"a {draw.choice(NOUNS)}", "input": "", "output": response})
    write_jsonl(folder / "train.jsonl", made)
    write_jsonl(folder / "validation.jsonl", made[:3])
    return folder


def model_folder(folder: Path, family: str = "opt", task: str = "causal_language_modeling", **overrides) -> Path:
    """A `save_pretrained` folder of a tiny model with a tokenizer that knows the world's words."""
    tokenizer = word_tokenizer(
        [*(row["sentence"] for row in sentences(200, seed=0)), "Summarize : Summary Document Article"],
        style="encoder" if family in ("roberta", "bert") else "decoder",
    )
    network = tiny_network(family, task, **overrides)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_lora(path: Path, *names: str, **default: object) -> Path:
    """A network-wise LoRA configuration with `names` on (q and v if none is given)."""
    lines = ['granularity = "network"', "[default]"]
    lines += [f"{key} = {value}" for key, value in {"r": 4, "lora_alpha": 8, **default}.items()]
    lines += ["disable_adapter = true"]
    for name in names or ("q_proj", "v_proj"):
        lines += [f'[all_layers."{name}"]', "disable_adapter = false"]
    path.write_text("\n".join(lines) + "\n")
    return path


def write_shortcuts(path: Path, **default: object) -> Path:
    """A network-wise shortcut configuration with all four on."""
    lines = ['granularity = "network"', "[default]"]
    lines += [f"{key} = {value}" for key, value in {"r": 4, "shortcut_alpha": 8, **default}.items()]
    path.write_text("\n".join(lines) + "\n")
    return path


@dataclass(frozen=True)
class World:
    """Folders that the tests share and never write into, and one for their runs."""

    opt: Path
    sst2: Path
    lora: Path
    runs: Path

    def training(self, *more: object) -> list[str]:
        """A command that fine-tunes `opt_lora` on the small SST-2 in a second; `more` may add and override options."""
        shared = ("train", "opt_lora", "sst2", "--load", self.opt, "--pretrained", "--dataset-saved-path", self.sst2)
        sizes = ("--lora-config", self.lora, "--learning-rate", 1e-2, "--batch-size", 4, "--project-dir", self.runs)
        return [str(part) for part in (*shared, *sizes, *more)]

    def checkpoint(self, project: str, name: str = "last") -> Path:
        return self.runs / project / "checkpoints" / f"{name}.ckpt"


def make_world(folder: Path) -> World:
    return World(
        opt=model_folder(folder / "opt"),
        sst2=sst2_folder(folder / "sst2"),
        lora=write_lora(folder / "lora.toml", lora_dropout=0.1),
        runs=folder / "runs",
    )


# A constant rate without clipping, so that a run with more steps starts with the same steps. By default so few rows
# have many epochs.
STEADY = ("--learning-rate", "5e-5", "--lr-scheduler", "none", "--warmup-steps", "0", "--gradient-clip-val", "0")
STEADY += ("--max-epochs", "3")


def command(*arguments: object) -> list[str]:
    """A command line with the options that keep a test small. New training is `STEADY` unless `arguments` say more."""
    words = [*map(str, arguments), "--logger", "none"]
    if "--project" in words and not {"--overwrite", "--resume-training"} & {*words}:
        words.append("--project-suffix")  # tests that share a folder may use a name twice
    if "--accelerator" not in words:
        words += ["--accelerator", "cpu"]
    if words[0] in ("train", "train-dyrealloc") and not {"--config", "--resume-training"} & {*words}:
        first = next(place for place, word in enumerate(words) if word.startswith("--"))
        words[first:first] = STEADY
    return words


def run(*arguments: object) -> int:
    """The program in this process; returns its exit code."""
    return main(command(*arguments))


def run_apart(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """The program as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "main", *command(*arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint, weights_only=True)["state_dict"]


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metrics_of(run_folder: Path) -> dict[str, dict[str, float]]:
    return json.loads((run_folder / "metrics.json").read_text())["metrics"]
