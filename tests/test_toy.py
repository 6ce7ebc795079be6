"""The toy world: its rows are right and even, its splits apart, and the model that comes with it knows its language."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dataset import registry
from dataset.toy import tasks
from dataset.toy.language import QUALITY
from dataset.toy.world import SPLITS, TRAITS
from heterolora.common.errors import UserError
from tests.quick import some_slow
from tests.world import ROOT, metrics_of, run
from tools.toy.baselines import bag_of_words, frozen

TOY_OPT = ROOT / "model" / "toy_opt"
MEANING = {
    word: (trait.name, word in trait.yes)
    for traits in (*TRAITS.values(), QUALITY)
    for trait in traits
    for word in (*trait.yes, *trait.no)
}


def read(text: str) -> tuple[str, dict[str, bool]]:
    """A sentence of the toy world → its subject, and trait → whether it holds; by looking words up, one by one."""
    subject, told = re.fullmatch(r"(?:The )?(\w+) was (.*)\.", text).groups()
    facts, negated = {}, False
    for word in re.findall(r"\w+", told):
        if word == "not":
            negated = True
        elif word != "and":
            trait, yes = MEANING[word]
            facts[trait], negated = yes != negated, False
    return subject, facts


def test_no_word_means_two_things() -> None:
    words = [word for traits in TRAITS.values() for trait in traits for word in (*trait.yes, *trait.no)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("split", SPLITS)
def test_nli_labels_follow_from_the_sentences(split: str) -> None:
    for row in tasks.generate_nli(split, 0):
        _, facts = read(row["sentence1"])
        pronoun, asked = re.fullmatch(r"Was (she|he|it) (.*), would you say\?", row["sentence2"]).groups()
        ((trait, holds),) = read(f"{pronoun} was {asked}.")[1].items()
        assert row["label"] == int(facts[trait] != holds)


@pytest.mark.parametrize("split", SPLITS)
def test_sentiment_is_what_most_aspects_say(split: str) -> None:
    for row in tasks.generate_sentiment(split, 0):
        said = re.findall(r"was (not )?(\w+)", row["sentence"])
        good = sum(MEANING[word][1] != bool(negated) for negated, word in said)
        assert len(said) == 3
        assert row["label"] == int(good >= 2)


def test_summaries_tell_the_same_in_the_plainest_words() -> None:
    for row in tasks.generate_summary("test", 0):
        described = dict(read(f"{text}.") for text in row["document"].split(". ")[::2])
        summarised = dict(read(f"{text.rstrip('.')}.") for text in row["summary"].split(". "))
        assert summarised == described
        assert " not " not in row["summary"]


@pytest.mark.parametrize("name", ["toy_nli", "toy_sentiment", "toy_lm", "toy_summary"])
def test_rows_are_those_of_the_seed(name: str) -> None:
    generate = registry.get(name).generate
    assert generate("test", 0) == generate("test", 0)
    assert generate("test", 0) != generate("test", 1)
    assert {len(generate(split, 0)) for split in SPLITS} == {4000, 500}
    with pytest.raises(UserError, match="no split"):
        generate("dev", 0)


@pytest.mark.parametrize("name", ["toy_nli", "toy_sentiment"])
def test_labels_are_even(name: str) -> None:
    for split in SPLITS:
        counts = Counter(row["label"] for row in registry.get(name).generate(split, 0))
        assert counts[0] == counts[1]


def test_splits_tell_nothing_of_each_other() -> None:
    told = {
        split: {
            (subject, *sorted(facts)) for subject, facts in (read(r["sentence1"]) for r in tasks.generate_nli(split, 0))
        }
        for split in SPLITS
    }
    assert not told["train"] & told["validation"]
    assert not told["train"] & told["test"]
    assert not told["validation"] & told["test"]


def test_words_alone_say_little() -> None:
    assert bag_of_words().accuracy < 0.6


class TestModel:
    def test_is_small_and_safe(self) -> None:
        files = [file for file in TOY_OPT.iterdir() if file.is_file()]
        assert sum(file.stat().st_size for file in files) < 8_000_000
        assert {file.suffix for file in files} <= {".json", ".safetensors"}

    @torch.no_grad()
    def test_knows_the_language(self) -> None:
        tokenizer = AutoTokenizer.from_pretrained(TOY_OPT)
        texts = [row["text"] for row in tasks.generate_lm("test", 0)[:100]]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        torch.manual_seed(0)
        knows = AutoModelForCausalLM.from_pretrained(TOY_OPT).eval()
        random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TOY_OPT)).eval()
        assert float(knows(**batch, labels=labels).loss) < 1.5
        assert float(random(**batch, labels=labels).loss) > 5.0

    def test_is_no_finished_classifier(self) -> None:
        assert frozen().accuracy < 0.85


@pytest.mark.parametrize(
    ("name", "metric"),
    some_slow(
        [("toy_nli", "accuracy"), ("toy_sentiment", "accuracy"), ("toy_lm", "perplexity"), ("toy_summary", "rougeL")],
        quick=[("toy_nli", "accuracy"), ("toy_lm", "perplexity"), ("toy_summary", "rougeL")],
    ),
)
def test_every_task_runs_without_a_single_path(tmp_path: Path, name: str, metric: str) -> None:
    """No --load: the base is the model that comes with the program."""
    sizes = ("--max-steps", 3, "--limit-val-batches", 2, "--limit-test-batches", 2)
    assert run("train", "opt_lora", name, *sizes, "--project-dir", tmp_path, "--project", "run") == 0
    assert set(metrics_of(tmp_path / "run")) == {"validation", "test"}
    assert metric in metrics_of(tmp_path / "run")["test"]


@pytest.mark.slow
def test_the_quickstart_tells_its_story(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "tools/quickstart.py", "--project-dir", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    accuracy = {
        name: metrics_of(folder / name)["test"]["accuracy"] for name in ("uniform", "random", "static", "dynamic")
    }
    drawn = accuracy.pop("random")
    assert min(accuracy.values()) > max(drawn, frozen().accuracy) + 0.1
    assert "Loading weights" not in done.stderr
    said = done.stdout.replace("\n", "")
    assert "uniform: 24 of 24 places on, in every block" in said
    assert re.search(r"static: \d of 24 places on, in blocks", said)
    for name in (
        "static_scores/scores.png", "static/adapter/allocation.png", "dynamic/reallocation_timeline.png",
        "dynamic/reallocation_frequency.png",
    ):  # fmt: skip
        assert (folder / name).is_file()
        assert name in said
    assert json.loads((folder / "dynamic" / "metrics.json").read_text())["options"]["budget_parameters"] == 1152
