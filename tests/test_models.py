"""`python -m main models` and `datasets`: the families that have a table, and the data sets that have an entry."""

from __future__ import annotations

import json

import pytest

import model.family as families
from dataset import registry
from main import main
from tests.mistakes import complaint


def test_every_family_is_listed_with_its_places(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[:2] == ["--model", "model_type"]
    rows = {line.split()[0]: line for line in lines if line.split()[0].endswith("_lora")}
    assert list(rows) == [f"{name}_lora" for name in families.names()]
    assert rows["gpt2_lora"].endswith("o_proj w1 w2 c_attn")
    assert "roberta, xlm-roberta, camembert" in rows["roberta_lora"]
    assert any("docs/own-model.md" in line for line in lines)


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    found = {each["model"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["phi3_lora"]["places"]["qkv_proj"] == "self_attn.qkv_proj"
    assert found["bert_lora"]["tasks"] == ["classification"]
    assert all(families.parse_model_name(name) is not None for name in found)


def test_every_data_set_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [*registry.names()]
    assert main(["datasets", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["rte"] == {
        "name": "rte",
        "task": "classification",
        "metrics": ["accuracy"],
        "content": "does the first sentence entail the second?",
    }


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (("train", "--dataset", "rtee"), "python -m main datasets"),
        (("train", "--model", "optt_lora"), "python -m main models"),
        (("imp-test", "--importance-test-name", "snap"), "python -m main ACTION --help-all"),
    ],
)
def test_a_mistake_names_the_command_that_lists_all(
    capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], command: str
) -> None:
    assert f"; {command} lists all)" in complaint(capfd, *arguments)


def test_a_misspelt_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'models'" in complaint(capfd, "modles")
    assert "see python -m main models --help" in complaint(capfd, "models", "opt")
