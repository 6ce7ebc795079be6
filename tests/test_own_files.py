"""A heuristic or a model family is one added file: what the file declares works, and nothing else changes.

All commands run in one process, in a copy of the program that has the files below.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification

from tests.tiny import word_tokenizer
from tests.world import ROOT, command

HEURISTICS = "heterolora/saliency/heuristics"
FILES = {
    f"{HEURISTICS}/trained_b.py": '''
"""The norm of B, which is 0 until the elements are trained."""

from heterolora.saliency import register

spaces = []


@register("trained_b", warmup_batches=3, remark="trained_b: a remark on every result")
def trained_b(problem):
    spaces.append(problem.space)
    return [low_rank.B.detach().norm().item() for low_rank in problem.space]
''',
    f"{HEURISTICS}/all_equal.py": """
from heterolora.saliency import register


@register("all_equal", hint="all_equal: a hint at a cure")
def all_equal(problem):
    return [0.0] * len(problem.space)
""",
    f"{HEURISTICS}/all_equal_baseline.py": """
from heterolora.saliency import register


@register("all_equal_baseline", is_baseline=True)
def all_equal_baseline(problem):
    return [0.0] * len(problem.space)
""",
    f"{HEURISTICS}/base_weights.py": """
from heterolora.saliency import register


@register("base_weights", needs_base_weights=True)
def base_weights(problem):
    return [float(low_rank.element.layer) for low_rank in problem.space]
""",
    "model/family/xlm.py": """
from dataclasses import replace

from model.family import roberta

FAMILY = replace(roberta.FAMILY, name="xlm", model_types=("xlm-roberta",))
""",
}

SMALL = ("--limit-train-batches", 2, "--limit-val-batches", 1, "--limit-test-batches", 1, "--max-epochs", 1)
SCORING = ("imp-test", "--dataset", "toy_nli", "--imp-limit-test-batches", 1)
COMMANDS = {
    "trained_b": (*SCORING, "--importance-test-name", "trained_b"),
    "trained_b, told not to": (*SCORING, "--importance-test-name", "trained_b", "--imp-warmup-batches", 0),
    "all_equal": (*SCORING, "--importance-test-name", "all_equal"),
    "all_equal_baseline": (*SCORING, "--importance-test-name", "all_equal_baseline"),
    "base_weights": (*SCORING, "--importance-test-name", "base_weights"),
    "base_weights, quantised": (
        *SCORING, "--importance-test-name", "base_weights", "--quantize", "nf4",
        "--load", "model/toy_opt", "--pretrained",
    ),
    "misspelt": (*SCORING, "--importance-test-name", "traned_b"),
    "xlm_lora_ags": ("train", "xlm_lora_ags", "toy_nli", "--load", "xlm", "--pretrained", *SMALL),
    "xlm_lora": (*SCORING, "--model", "xlm_lora", "--load", "xlm", "--pretrained"),
    "another type": ("train", "xlm_lora", "toy_nli", "--load", "model/toy_opt", "--pretrained"),
    "help": ("imp-test", "--help-all"),
}  # fmt: skip

DRIVER = """
import contextlib, io, json, sys
from main import main

done = {}
for name, arguments in json.load(sys.stdin).items():
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    done[name] = {"code": code, "out": out.getvalue(), "err": err.getvalue()}

from heterolora.saliency.heuristics.trained_b import spaces
left = [float(low_rank.B.detach().norm()) for low_rank in spaces[0]]
print(json.dumps({"done": done, "left": left}))
"""


@dataclass(frozen=True)
class Done:
    """One command: its exit code, what it printed, and its run folder."""

    code: int
    out: str
    err: str
    folder: Path

    def scores(self) -> list[float]:
        document = tomllib.loads((self.folder / "scores.toml").read_text())
        layers = [value for name, value in document.items() if name.startswith("layer_")]
        return [element["score"] for layer in layers for element in layer.values()]


@dataclass(frozen=True)
class AllDone:
    """Every command by its name, and the norm of each B after the warm-up of `trained_b` was undone."""

    commands: dict[str, Done]
    left: list[float]


@pytest.fixture(scope="module")
def all_done(tmp_path_factory: pytest.TempPathFactory) -> AllDone:
    folder = tmp_path_factory.mktemp("program")
    for name in ("actions", "configs", "dataset", "heterolora", "model", "options"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "main.py", folder / "main.py")
    for path, text in FILES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(text.lstrip(), encoding="utf-8")
    write_xlm(folder / "xlm")
    lines = {
        name: command(*words, *(() if "--help" in words else ("--project", f"run-{index}", "--batch-size", 4)))
        for index, (name, words) in enumerate(COMMANDS.items())
    }
    ran = subprocess.run(
        [sys.executable, "-c", DRIVER], cwd=folder, input=json.dumps(lines), capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    runs = [folder / "runs" / f"run-{index}" for index in range(len(lines))]
    done = {name: Done(**one, folder=run) for (name, one), run in zip(found["done"].items(), runs, strict=True)}
    return AllDone(done, found["left"])


def write_xlm(folder: Path) -> None:
    """A tiny XLM-RoBERTa. It has 12 positions, and like RoBERTa it uses them from the third on."""
    tokenizer = word_tokenizer(["a b c d e f"], style="encoder")
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, pad_token_id=tokenizer.pad_token_id, type_vocab_size=1,
    )  # fmt: skip
    XLMRobertaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class TestHeuristic:
    @pytest.mark.slow
    def test_warmup_batches_train_the_elements_first(self, all_done: AllDone) -> None:
        scores = all_done.commands["trained_b"].scores()
        assert len(scores) > 8
        assert min(scores) > 0
        assert set(all_done.commands["trained_b, told not to"].scores()) == {0.0}

    def test_the_warm_up_is_undone(self, all_done: AllDone) -> None:
        assert set(all_done.left) == {0.0}

    def test_a_remark_is_printed(self, all_done: AllDone) -> None:
        assert "note: trained_b: a remark on every result" in all_done.commands["trained_b"].out

    def test_equal_scores_are_mentioned_with_its_hint(self, all_done: AllDone) -> None:
        out = all_done.commands["all_equal"].out
        assert "all all_equal scores are 0" in out
        assert "all_equal: a hint at a cure" in out

    def test_a_baseline_has_equal_scores(self, all_done: AllDone) -> None:
        assert "scores are" not in all_done.commands["all_equal_baseline"].out

    def test_base_weights_are_there_unless_quantised(self, all_done: AllDone) -> None:
        assert all_done.commands["base_weights"].code == 0
        refused = all_done.commands["base_weights, quantised"]
        assert refused.code == 2
        (line,) = refused.err.strip().splitlines()
        assert line.startswith("error: base_weights")
        assert "--quantize" in line.partition(";")[0]

    def test_help_and_messages_know_it(self, all_done: AllDone) -> None:
        assert "all_equal_baseline" in all_done.commands["help"].out
        assert "did you mean 'trained_b'" in all_done.commands["misspelt"].err


class TestFamily:
    def test_it_trains_with_shortcuts(self, all_done: AllDone) -> None:
        """The rows are longer than the model's positions; its table says how many tokens fit."""
        done = all_done.commands["xlm_lora_ags"]
        assert done.code == 0, done.err
        assert (done.folder / "metrics.json").is_file()
        assert "shortcut2" in done.out

    def test_its_elements_have_scores(self, all_done: AllDone) -> None:
        done = all_done.commands["xlm_lora"]
        assert done.code == 0, done.err
        assert len(done.scores()) == 2 * 6  # blocks, linear layers

    def test_its_table_refuses_another_type(self, all_done: AllDone) -> None:
        done = all_done.commands["another type"]
        assert done.code == 2
        assert "'xlm'" in done.err
        assert "'xlm-roberta'" in done.err
