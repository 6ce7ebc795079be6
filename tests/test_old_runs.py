"""Run folders of an older version load, resume and report as they did then.

tests/fixtures/runs/README.md shows the commands that made them.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from heterolora.common.errors import UserError
from tests.world import ROOT, metrics_of, run, weights
from tools import export, plot_realloc, report

RUNS = ROOT / "tests" / "fixtures" / "runs"
ACTIONS = ("train", "train-dyrealloc")

of_each_run = pytest.mark.parametrize("action", ACTIONS)


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths in the folders are relative to the root of the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def copy(tmp_path: Path):
    """Return a copy of a run folder, so that no test writes into a fixture."""
    return lambda action: Path(shutil.copytree(RUNS / action, tmp_path / "old" / action))


def assert_metrics(found: Path, expected: dict[str, dict[str, float]]) -> None:
    assert metrics_of(found).keys() == expected.keys()
    for split, values in expected.items():
        assert metrics_of(found)[split] == pytest.approx(values, abs=1e-4), split


def curves(folder: Path) -> dict[str, float]:
    """Column and step -> training loss or validation figure."""
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = ("train/loss", "validation/loss", "validation/accuracy")
    return {f"{name} {row['step']}": float(row[name]) for row in rows for name in names if row[name]}


def reallocations(folder: Path) -> list[list]:
    """Epoch, step and the elements that are on, for each reallocation of a run."""
    document = tomllib.loads((folder / "reallocation_history.toml").read_text())
    return [
        [entry["epoch"], entry["step"], [f"layer_{e['layer']}.{e['name']}" for e in entry["elements"] if e["on"]]]
        for entry in document.values()
    ]


class TestLoading:
    @of_each_run
    @pytest.mark.parametrize("result", ["checkpoints/best.ckpt", "adapter"])
    def test_best_weights_give_the_recorded_metrics(self, copy, tmp_path: Path, action: str, result: str) -> None:
        folder = copy(action)
        limits = ("--limit-val-batches", 4, "--limit-test-batches", 4, "--batch-size", 16)
        tested = ("--project-dir", tmp_path, "--project", "tested")
        assert run("test", "--load", folder / result, *limits, *tested) == 0
        expected = metrics_of(folder)
        assert_metrics(tmp_path / "tested", {split: expected[split] for split in metrics_of(tmp_path / "tested")})

    @of_each_run
    def test_the_configuration_repeats_the_run(self, copy, tmp_path: Path, action: str) -> None:
        folder = copy(action)
        assert run(action, "--config", folder / "config.toml", "--project-dir", tmp_path, "--project", "again") == 0
        assert_metrics(tmp_path / "again", metrics_of(folder))


class TestResuming:
    def test_from_the_middle_it_ends_as_the_older_version_did(self, copy) -> None:
        """`best.ckpt` is of the first epoch. The learning rate falls linearly over both."""
        old, folder = RUNS / "train", copy("train")
        checkpoints = folder / "checkpoints"
        (checkpoints / "last.ckpt").unlink()
        assert run("train", "--resume-training", "--load", checkpoints / "best.ckpt") == 0
        assert_metrics(folder, metrics_of(old))
        assert curves(folder) == pytest.approx(curves(old), abs=1e-5)
        found, expected = (weights(run / "checkpoints" / "last.ckpt") for run in (folder, old))
        assert found.keys() == expected.keys()
        for name in found:
            assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5), name

    def test_one_more_epoch_gives_what_the_older_version_gave(self, copy) -> None:
        """The learning rate is constant. A falling one would be that of the longer run now, in the first step too."""
        action = "train-dyrealloc"
        folder, expected = copy(action), json.loads((RUNS / "resumed.json").read_text())
        last = folder / "checkpoints" / "last.ckpt"
        assert run(action, "--resume-training", "--load", last, "--max-epochs", 3) == 0
        assert_metrics(folder, expected["metrics"])
        checkpoint = torch.load(last, weights_only=True)
        assert checkpoint["global_step"] == expected["steps"]
        assert sorted(checkpoint["heterolora"]["on"]) == sorted(expected["on"])
        norms = {name: tensor.norm().item() for name, tensor in weights(last).items()}
        assert norms == pytest.approx(expected["norms"], rel=1e-3, abs=1e-4)
        assert reallocations(folder) == expected["reallocations"]


class TestTools:
    def test_report(self, tmp_path: Path) -> None:
        page = tmp_path / "report.html"
        report.main([*(str(RUNS / action) for action in ACTIONS), "--output", str(page)])
        text = page.read_text(encoding="utf-8")
        for action in ACTIONS:
            assert f"{metrics_of(RUNS / action)['validation']['loss']:.4f}" in text
        assert "opt_lora_ags" in text
        assert "snip" in text

    def test_pictures_of_the_reallocations(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        arguments = ["plot_realloc", str(RUNS / "train-dyrealloc"), "--output", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", arguments)
        plot_realloc.main()
        for name in ("reallocation_frequency.png", "reallocation_timeline.png"):
            assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

    def test_pictures_of_other_runs_do_not_replace_those_of_a_run(self, tmp_path: Path, monkeypatch) -> None:
        run, other = RUNS / "train-dyrealloc", tmp_path / "other"
        shutil.copytree(run, other)
        before = (other / "reallocation_timeline.png").read_bytes()
        for runs in ([run], [run, other]):
            monkeypatch.setattr(sys, "argv", ["plot_realloc", *map(str, runs), "--output", str(other)])
            with pytest.raises(UserError, match="has pictures of its own"):
                plot_realloc.main()
        assert (other / "reallocation_timeline.png").read_bytes() == before

    @of_each_run
    def test_export(self, copy, tmp_path: Path, action: str) -> None:
        """The exported adapter has the weights of the one that the older version wrote."""
        folder, output = copy(action), tmp_path / "adapter"
        shortcuts = ("--drop-shortcuts",) if action == "train" else ()
        export.main([str(folder), "--format", "peft", "--output", str(output), "--accelerator", "cpu", *shortcuts])
        old, new = (load_file(place / "adapter_model.safetensors") for place in (folder / "adapter", output))
        assert old.keys() == new.keys()
        assert all(torch.equal(old[name], new[name]) for name in old)
