"""Which checkpoint is the best, when training stops early, and a model that predicts a single class."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from model.checkpoint import read_checkpoint
from model.metrics import OnlyClass
from tests.world import World, run, sentences, write_jsonl


def validations(out: str) -> list[tuple[int, dict[str, float]]]:
    """Step and values of each validation that a run printed."""
    lines = re.findall(r"^epoch \d+, step (\d+): (.*)$", out, re.MULTILINE)
    return [
        (int(step), {name: float(value) for name, value in re.findall(r"validation/(\w+) (\S+?)(?:,|$)", figures)})
        for step, figures in lines
    ]


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose training rows all have label 1."""
    folder = tmp_path_factory.mktemp("one-sided")
    write_jsonl(folder / "train.jsonl", [{**row, "label": 1} for row in sentences(24, seed=1)])
    write_jsonl(folder / "validation.jsonl", sentences(12, seed=2))
    return folder


def test_one_class_and_patience(capfd, world: World, one_sided: Path, tmp_path: Path) -> None:
    place = ("--dataset-saved-path", one_sided, "--project-dir", tmp_path, "--project", "run")
    assert run(*world.training(*place, "--learning-rate", 0.05, "--max-epochs", 9, "--patience", 2)) == 0
    out = capfd.readouterr().out
    found = validations(out)
    assert len(found) < 9
    (note,) = re.findall(r"note: all predictions on .*", out)
    assert re.match(r"note: all predictions on validation at step \d+ are 'positive'", note)
    assert "try another --learning-rate (now 0.05)" in note
    (line,) = re.findall(r"stopped at .*", out)
    epoch, step = len(found) - 1, found[-1][0]
    best = max(values["accuracy"] for _, values in found)
    assert line == (
        f"stopped at epoch {epoch}, step {step}: no better validation/accuracy than {best:.4f} in 2 validations "
        "(--patience 2)"
    )


def test_patience_counts_validations_after_every_batch(capfd, world: World, tmp_path: Path) -> None:
    """An interval of one batch is no interval of one epoch."""
    place = ("--project-dir", tmp_path, "--project", "run", "--learning-rate", 1e-12, "--max-epochs", 2)
    assert run(*world.training(*place, "--val-check-interval", 1, "--patience", 2)) == 0
    assert len(validations(capfd.readouterr().out)) == 3


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_best_checkpoint(capfd, world: World, tmp_path: Path, metric: str) -> None:
    """Validation on the training rows, at so low a rate that the loss decreases and the accuracy stays the same."""
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "data" / f"{split}.jsonl", sentences(24, seed=1))
    place = ("--dataset-saved-path", tmp_path / "data", "--project-dir", tmp_path, "--project", "run")
    place += ("--metric", metric)
    assert run(*world.training(*place, "--learning-rate", 1e-4, "--max-epochs", 3)) == 0
    found = validations(capfd.readouterr().out)
    assert len({values["accuracy"] for _, values in found}) == 1
    losses = {step: values["loss"] for step, values in found}
    assert len(set(losses.values())) == 3
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert best.step == min(losses, key=losses.get) != found[0][0]


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [((1, 1, 1), (0, 1, 2), 1), ((1, 0, 1), (0, 1, 2), -1), ((1, 1, 1), (1,) * 3, -1)],
)
def test_only_class(predicted: tuple[int, ...], true: tuple[int, ...], expected: int) -> None:
    counted = OnlyClass(3)
    for guess, label in zip(predicted, true, strict=True):
        counted.update(torch.eye(3)[[guess]], torch.tensor([label]))
    assert int(counted.compute()) == expected
