"""`main.fit`: training from Python, as a notebook does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
from transformers import AutoModelForSequenceClassification

from heterolora.common.errors import UserError
from main import fit
from tests.world import World, metrics_of, run, same_weights


@pytest.fixture
def options(world: World, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": "opt_lora", "load": world.opt, "dataset": "sst2", "dataset_saved_path": world.sst2, "rank": 2,
        "batch_size": 4, "max_epochs": 1, "learning_rate": 1e-2, "logger": "none", "accelerator": "cpu",
        "project_dir": tmp_path, "project": "run", "metric": None,
    }  # fmt: skip


def test_it_is_the_command(options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = fit(**options, row_results=True)
    assert "run folder:" in capsys.readouterr().out
    assert found.folder == tmp_path / "run"
    assert found.metrics == metrics_of(found.folder)
    assert (found.folder / "rows.csv").is_file()
    base = AutoModelForSequenceClassification.from_pretrained(options["load"], num_labels=2)
    assert peft.PeftModel.from_pretrained(base, found.adapter).peft_config["default"].r == 2
    assert run("train", "--config", found.folder / "config.toml", "--project-dir", tmp_path, "--project", "again") == 0
    assert same_weights(*(tmp_path / name / "checkpoints" / "last.ckpt" for name in ("run", "again")))


def test_it_searches(options: dict[str, Any]) -> None:
    found = fit("train-dyrealloc", **options, budget_schedule="shrink", budget_parameters=300)
    assert (found.folder / "reallocation_timeline.png").is_file()


@pytest.mark.parametrize(
    ("action", "given", "message"),
    [
        ("test", {}, "fit cannot run 'test'"),
        ("train", {"bach_size": 4}, "--bach-size"),
        ("train", {"batch_size": "many"}, "--batch-size 'many' can't be read; give a whole number"),
        ("train", {"num_devices": 2}, "fit trains in one process; use python -m main for several devices"),
        ("train", {"dataset": "sst3"}, "sst3"),
    ],
)
def test_a_mistake_is_raised(options: dict[str, Any], action: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(action, **{**options, **given})
