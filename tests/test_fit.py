"""`main.fit`: training from Python, as a notebook does it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoModelForSequenceClassification

from heterolora.common.errors import UserError
from heterolora.program import fit as fit_of_the_package
from main import Fitted, fit, main
from tests.world import ROOT, World, command, metrics_of, run, same_weights


@pytest.fixture
def options(world: World, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "opt_lora", "load": world.opt, "dataset": "sst2", "dataset_saved_path": world.sst2, "rank": 2,
        "batch_size": 4, "max_epochs": 1, "learning_rate": 1e-2, "logger": "none", "accelerator": "cpu",
        "project_dir": tmp_path, "project": "run", "metric": None,
    }  # fmt: skip


def test_it_is_the_command(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threshold, frozen = gc.get_threshold(), gc.get_freeze_count()
    found = fit(**options, row_results=True)
    assert gc.get_threshold() == threshold
    assert gc.get_freeze_count() <= frozen  # objects of a notebook can still be collected
    assert "run folder:" in capsys.readouterr().out
    assert found.folder == tmp_path / "run"
    assert found.metrics == metrics_of(found.folder)
    assert (found.folder / "rows.csv").is_file()
    base = AutoModelForSequenceClassification.from_pretrained(options["load"], num_labels=2)
    assert peft.PeftModel.from_pretrained(base, found.adapter).peft_config["default"].r == 2
    assert run("train", "--config", found.folder / "config.toml", "--project-dir", tmp_path, "--project", "again") == 0
    assert same_weights(*(tmp_path / name / "checkpoints" / "last.ckpt" for name in ("run", "again")))


def test_a_program_collects_seldom_while_it_imports() -> None:
    script = """
import gc
from actions.run.collection import seldom_collected
before, frozen = gc.get_threshold(), gc.get_freeze_count()  # Python 3.12 starts with frozen objects
for stays in (False, True):
    try:
        with seldom_collected(stays=stays):
            assert gc.get_threshold()[0] > 10 * before[0]
            raise LookupError
    except LookupError:
        assert gc.get_threshold() == before
        assert (gc.get_freeze_count() > frozen) == stays
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_it_searches(options: dict[str, Any]) -> None:
    found = fit("train-dyrealloc", **options, budget_schedule="shrink", budget_parameters=300)
    assert (found.folder / "reallocation_timeline.png").is_file()


def test_it_predicts_as_the_command(options: dict[str, Any], tmp_path: Path) -> None:
    """Also through the package, which a notebook imports from any folder."""
    found = fit_of_the_package(**options)
    texts = ["bright, and well meant", "dull"]
    rows = found.predict(texts, probabilities=True, accelerator="cpu")
    file, output = tmp_path / "new.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps({"sentence": text}) + "\n" for text in texts))
    given = ("--load", found.folder, "--dataset", file, "--probabilities", "--output", output)
    assert main(command("predict", *given)) == 0
    written = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["label"] for row in rows] == [row["label"] for row in written]
    for row, other in zip(rows, written, strict=True):
        for name in ("probability", "probability_positive", "probability_negative"):
            assert row[name] == pytest.approx(other[name], abs=1e-6)
    again = found.predict(dataset=file, accelerator="cpu")
    assert [(row["sentence"], row["label"]) for row in again] == [(row["sentence"], row["label"]) for row in written]
    assert found.predict("dull", accelerator="cpu")[0]["label"] == rows[1]["label"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs texts, or the option dataset; give one of them"),
        ({"texts": "a", "dataset": "b.csv"}, "give one of them"),
        ({"texts": "a", "output": "c.csv"}, "returns the rows, and output is given"),
        ({"texts": "a", "probabilites": True}, "--probabilites"),
    ],
)
def test_a_mistake_in_a_prediction_is_raised(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Fitted(tmp_path, {}, None).predict(**given)


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        ("test", {}, "fit cannot run 'test'"),
        ("train", {"bach_size": 4}, "--bach-size"),
        ("train", {"batch_size": "many"}, "--batch-size 'many' can't be read; give a whole number"),
        ("train", {"num_devices": 2}, "train runs in one process here; use python -m main for several devices"),
        ("train", {"dataset": "sst3"}, "sst3"),
    ],
)
def test_a_mistake_is_raised(options: dict[str, Any], action: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(action, **{**options, **given})
