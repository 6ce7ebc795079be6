"""What training has made is not lost by what fails beside it or after it."""

from __future__ import annotations

import shutil
from pathlib import Path

import evaluate
import pytest

from actions import train
from dataset.official import official_metric
from heterolora.common.errors import UserError
from model.task.fine_tuning import FineTuning
from tests.quick import some_slow
from tests.world import World, command, main, run


def test_official_metrics_need_no_folder_of_their_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()  # root may write into a folder that is read-only
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "file" / "below")
    assert official_metric("glue/rte").compute(predictions=[0, 1], references=[0, 0]) == {"accuracy": 0.5}


@pytest.mark.parametrize("action", ["train", "train-dyrealloc"])
def test_the_adapter_is_written_if_measuring_fails(world: World, tmp_path: Path, monkeypatch, action: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UserError("the metrics are gone", "nothing would help")

    monkeypatch.setattr(train, "measure", fail)
    command = world.training("--project-dir", tmp_path, "--project", "run", "--max-steps", 1, "--max-epochs", 1)
    assert run(action, *command[1:]) == 2
    written = {path.name for path in (tmp_path / "run" / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= written


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("logger", some_slow(["csv", "tensorboard"], quick=["csv"]))
@pytest.mark.parametrize("deleted", ["logs", "."])
def test_a_folder_that_is_deleted_in_training(
    world: World, tmp_path: Path, monkeypatch, capsys, logger: str, deleted: str
) -> None:
    """The run ends with one line, and can be resumed from where it ended."""
    steps, step = [], FineTuning.training_step

    def deleting(*args: object) -> object:
        steps.append(args)
        if len(steps) == 3:
            shutil.rmtree(tmp_path / "run" / deleted)
        return step(*args)

    monkeypatch.setattr(FineTuning, "training_step", deleting)
    words = world.training("--project-dir", tmp_path, "--project", "run", "--max-epochs", 1, "--log-every-n-steps", 1)
    words = command(*words)
    assert main([*words, "--logger", logger]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "logs was deleted during training; the weights are saved, continue with --resume-training --load" in line
    assert len(steps) == 3
    assert run("train", "--resume-training", "--load", line.split()[-1], "--project-dir", tmp_path / "again") == 0
    assert len(steps) == 12  # of one epoch
