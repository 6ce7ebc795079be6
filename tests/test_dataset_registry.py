"""Entries of the registry agree with themselves and with what stands behind them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dataset import registry
from dataset.choices import Choices
from dataset.entries.instructions import alpaca_prompt
from dataset.entries.super_glue import copa_texts, wic_texts
from dataset.official import OFFICIAL_METRICS
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from model import metrics

ROOT = Path(__file__).parents[1]
ASKED_FOR = (
    *("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli", "boolq", "cb", "copa", "wic"),
    *("wikitext2", "lambada", "alpaca", "alpaca-cleaned", "xsum", "samsum"),
    *("mmlu", "hellaswag", "arc_easy", "arc_challenge"),
)


@pytest.mark.parametrize("name", ASKED_FOR)
def test_every_data_set_is_there(name):
    assert registry.get(name).name == name
    assert name in registry.names()


@pytest.mark.parametrize("name", registry.names())
def test_entry_is_consistent(name):
    spec = registry.get(name)
    assert spec.summary
    assert (spec.path is None) != (spec.generate is None)
    if spec.path:
        assert spec.path.count("/") == 1, "only namespaced repositories load without a script"
    assert len(set(spec.labels)) == len(spec.labels)
    assert spec.num_labels == (len(spec.labels) or 1)
    assert metrics.build(spec.metrics, spec.num_labels, spec.choices is not None).keys() == set(spec.metrics)
    assert spec.official is None or spec.official in OFFICIAL_METRICS


@pytest.mark.parametrize("name", registry.names())
def test_functions_read_only_the_named_columns(name):
    spec = registry.get(name)
    row = dict.fromkeys(spec.columns, "cause")  # a word that copa's question column takes
    if spec.texts:
        assert all(isinstance(text, str) for text in spec.texts(row))
    if spec.prompt:
        assert isinstance(spec.prompt(row), str)
    if spec.response:
        assert isinstance(spec.response(row), str)


def test_kinds_of_labels():
    assert registry.get("stsb").regression
    assert registry.get("stsb").num_labels == 1
    assert not registry.get("rte").regression
    assert not registry.get("wikitext2").regression
    assert registry.get("mnli").validation == ("validation_matched", "validation_mismatched")
    assert registry.get("rte").labels == ("entailment", "not_entailment")
    assert registry.get("wnli").labels == ("not_entailment", "entailment")


def test_old_name():
    assert registry.get("wikitext-2-v1") is registry.get("wikitext2")


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"'wikitext' is not known; did you mean 'wikitext2'\?"):
        registry.get("wikitext")


def test_copa_asks_for_cause_or_effect():
    row = {"premise": "My shadow fell on the grass.", "choice1": "The sun rose.", "choice2": "The grass was cut."}
    first, second = copa_texts({**row, "question": "cause"})
    assert first == "My shadow fell on the grass. What was the cause of this?"
    assert second == "First: The sun rose. Second: The grass was cut."
    assert copa_texts({**row, "question": "effect"})[0].endswith("What happened as a result?")
    with pytest.raises(UserError, match="'causes' is not known; did you mean 'cause'"):
        copa_texts({**row, "question": "causes"})


def test_wic_names_its_word():
    assert wic_texts({"word": "bank", "sentence1": "a b", "sentence2": "c"}) == ("bank: a b", "c")


def test_alpaca_prompt_with_and_without_input():
    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    assert alpaca_prompt(row).endswith("### Instruction:\nAdd.\n\n### Input:\n1 2")
    assert "Input" not in alpaca_prompt({**row, "input": ""})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "clasification"}, "did you mean 'classification'"),
        ({"metrics": ("acuracy",)}, "did you mean 'accuracy'"),
        ({"metrics": ()}, "name at least one of each"),
        ({"columns": ("a", "b", "c")}, "3 text columns; give at most 2"),
        ({"prompt": str}, "give both, or neither"),
        ({"choices": Choices(list)}, "has choices without a prompt"),
        (
            {"task": "causal_language_modeling", "prompt": str, "choices": Choices(list, nested=("a",), group="b")},
            r"other columns than its own \(a, b\)",
        ),
        ({"prompt": str, "response": str}, "classifies and has a prompt"),
        ({"task": "summarization", "metrics": ("rouge1",)}, "summarises without a prompt"),
        ({"task": "causal_language_modeling", "metrics": ("perplexity",), "columns": ("a", "b")}, "give at most 1"),
    ],
)
def test_contradictory_entry(change, message):
    right = {"name": "mine", "task": "classification", "columns": ("text",), "metrics": ("accuracy",)}
    DatasetSpec(**right)
    with pytest.raises(UserError, match=message):
        DatasetSpec(**(right | change))


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """A folder whose modules are entries too."""
    monkeypatch.setattr(registry.entries, "__path__", [*registry.entries.__path__, str(tmp_path)])
    registry.specs.cache_clear()
    yield tmp_path
    registry.specs.cache_clear()
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(f"dataset.entries.{path.stem}", None)


def test_a_users_own_entry_is_one_file(entries):
    (entries / "mine_own.py").write_text(
        "from dataset.spec import DatasetSpec\n"
        "DATASETS = (DatasetSpec('mine', 'classification', ('text',), ('accuracy',), labels=('no', 'yes')),)\n"
    )
    assert registry.get("mine").labels == ("no", "yes")
    assert "mine" in registry.names()


def test_name_claimed_twice(entries):
    (entries / "mine_twice.py").write_text(
        "from dataset.spec import DatasetSpec\n"
        "DATASETS = (DatasetSpec('x', 'classification', ('text',), ('accuracy',), aliases=('rte',)),)\n"
    )
    with pytest.raises(UserError, match=r"'rte' is in dataset/entries/glue\.py and in mine_twice\.py"):
        registry.names()


def test_module_without_a_list(entries):
    (entries / "mine_empty.py").write_text("")
    with pytest.raises(UserError, match=r"mine_empty\.py lists no DATASETS"):
        registry.names()


def test_the_registry_imports_nothing_heavy():
    program = "import sys; from dataset import registry; registry.names(); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not {"torch", "transformers", "datasets", "numpy", "pyarrow"} & set(loaded.split())
