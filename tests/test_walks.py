"""The walks of docs/walks.md, command by command as they stand there, on small models."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, pipeline

from tests.stage import Stage
from tests.test_harness import write_task
from tests.world import ROOT, World, sentences

PAGE = ROOT / "docs" / "walks.md"
#: What makes a block of Python small.
SMALLER = {
    '"--max_steps", "200"': '"--max_steps", "2", "--report_to", "none"',
    "max_steps=200": "max_steps=2, use_cpu=True",
    "parameters=200_000": "parameters=1_000",
}


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


def steps(walk: str) -> list[str]:
    """The command lines of a walk, and its blocks of Python, in order."""
    found: list[str] = []
    pattern = rf"<!-- walk: {walk} -->\n```(\w+)\n(.*?)```"
    for language, block in re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.DOTALL):
        found += re.sub(r"\s*\\\n\s*", " ", block).splitlines() if language == "bash" else [block]
    assert len(found) > 0
    return found


def walk(stage: Stage, name: str, typed: str = "") -> dict[str, str]:
    """Take all steps of a walk. Returns each with its output."""
    outputs = {}
    for step in steps(name):
        small = step
        for large, little in SMALLER.items():
            small = small.replace(large, little)
        is_command = "\n" not in step
        small = small.replace("arc_easy", "choice.yaml") if is_command else small
        outputs[step] = stage.run(small, typed) if is_command else stage.python(small)
    return outputs


@pytest.fixture
def stage(world: World, tmp_path: Path) -> Stage:
    return Stage(tmp_path / "stage", world)


def test_the_first_commands_of_the_readme_are_those_of_a_walk() -> None:
    readme = re.sub(r"\s*\\\n\s*", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "\n".join(steps("classifier")[:3]) in readme


@pytest.mark.slow
def test_from_a_csv_file_to_a_pipeline(stage: Stage) -> None:
    texts = [str(row["sentence"]) for row in sentences(9, seed=7)]
    (stage.folder / "new.csv").write_text("\n".join(["review", *texts]) + "\n")
    outputs = walk(stage, "classifier")
    assert "label" in [*outputs.values()][-1]
    with (stage.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["review"] for row in rows] == texts
    theirs = pipeline("text-classification", model=str(stage.folder / "merged"))(texts)
    for row, found in zip(rows, theirs, strict=True):
        assert row["label"] == found["label"]
        assert float(row["probability"]) == pytest.approx(found["score"], abs=1e-5)


@pytest.mark.slow
@needs("lm_eval")
@needs("trl")
def test_from_conversations_to_trl(stage: Stage) -> None:
    write_task(stage.folder)
    outputs = walk(stage, "chat", typed="a film\n/exit\n")
    (chat,) = (output for step, output in outputs.items() if step.startswith("heterolora chat"))
    assert "/exit or Ctrl-D ends the chat" in chat
    results = [json.loads(path.read_text())["metrics"] for path in stage.folder.glob("runs/*/metrics.json")]
    assert any("lm_eval/tiny_choice" in metrics for metrics in results)
    written = yaml.safe_load((stage.folder / "trl.yaml").read_text())
    trained = json.loads((stage.folder / "trained" / "adapter_config.json").read_text())
    assert (trained["r"], trained["lora_alpha"]) == (written["lora_r"], written["lora_alpha"])
    assert {*trained["target_modules"]} == {*written["lora_target_modules"]}


@pytest.mark.slow
def test_from_scores_to_another_trainer(stage: Stage) -> None:
    walk(stage, "trainer")
    base = AutoModelForSequenceClassification.from_pretrained(
        stage.folder / "FacebookAI" / "roberta-base", num_labels=2
    )
    loaded = PeftModel.from_pretrained(base, stage.folder / "adapter")
    assert loaded.peft_config["default"].rank_pattern
