"""`test --lm-eval`, and lm_eval itself with the adapter of a run: on a task of this machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from main import main
from tests.world import World, command, run, sentences, text_folder, write_jsonl

needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path)


def write_task(folder: Path) -> Path:
    """Which of two words does the model expect first?"""
    rows = [{"words": row["sentence"].split()[2:], "label": row["label"]} for row in sentences(12, seed=4)]
    write_jsonl(folder / "rows.jsonl", [{"text": " ".join(row["words"]), "label": row["label"]} for row in rows])
    document = {
        "task": "tiny_choice",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["bad", "good"],
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / "choice.yaml").write_text(yaml.safe_dump(document))
    return folder / "choice.yaml"


@needs_lm_eval
@pytest.mark.slow
def test_the_harness_loads_the_adapter(world: World, tmp_path: Path, task: Path) -> None:
    """`lm_eval --model hf --model_args pretrained=BASE,peft=RUN/adapter` and `test --lm-eval` measure the same."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    text = ("--dataset-saved-path", text_folder(tmp_path / "text"), "--project-dir", tmp_path)
    start = ("opt_lora", "wikitext2", "--load", world.opt, "--pretrained", "--max-token-len", 16)
    assert run("train", *start, *text, "--max-steps", 2, "--learning-rate", 0.1, "--project", "trained") == 0
    adapter = tmp_path / "trained" / "adapter"
    assert run("test", "--load", adapter, *text, "--project", "measured", "--lm-eval", task) == 0
    metrics = json.loads((tmp_path / "measured" / "metrics.json").read_text())["metrics"]
    found = simple_evaluate(
        model="hf",
        model_args=f"pretrained={world.opt},peft={adapter},dtype=float32",
        tasks=[str(task)],
        device="cpu",
        task_manager=TaskManager(include_defaults=False),
    )["results"]["tiny_choice"]
    error = pytest.approx(found["acc_stderr,none"])
    assert metrics["lm_eval/tiny_choice"] == {
        "acc": found["acc,none"],
        "acc_stderr": error,
    }
    assert {"test", "validation"} & metrics.keys()


class TestMistakes:
    def refused(self, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
        capsys.readouterr()
        assert main(command("test", *arguments)) == 2
        return capsys.readouterr().err

    def test_a_classifier(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("opt_lora", "sst2", "--load", world.opt, "--pretrained", "--lm-eval", "hellaswag")
        assert "--lm-eval measures language models, and this is a classifier" in self.refused(capsys, *arguments)

    def test_the_package_is_missing(
        self, world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        there = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else there(name))
        arguments = ("opt_lora", "wikitext2", "--load", world.opt, "--pretrained", "--lm-eval", "hellaswag")
        expected = "error: --lm-eval needs lm_eval; pip install lm_eval, or leave it out\n"
        assert self.refused(capsys, *arguments) == expected

    @needs_lm_eval
    @pytest.mark.slow
    def test_an_unknown_task(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("opt_lora", "wikitext2", "--load", world.opt, "--pretrained", "--lm-eval", "helaswag")
        line = self.refused(capsys, *arguments)
        assert "'helaswag' is neither a task nor a file; did you mean 'hellaswag'?" in line
