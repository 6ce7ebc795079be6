"""`runs` lists the runs of a folder, and the report takes a folder of runs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from actions.run.in_use import in_use
from heterolora.common.errors import UserError
from main import main
from tests.world import ROOT, World, run
from tools import report

FIXTURES = ROOT / "tests" / "fixtures" / "runs"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two finished runs, of which `old` is the older one, between folders and files that are no runs."""
    for name, started in (("old", 1_000_000), ("new", 2_000_000)):
        shutil.copytree(FIXTURES / "train", tmp_path / name)
        os.utime(tmp_path / name / "config.toml", (started, started))
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlflow.db").write_bytes(b"")
    return tmp_path


def listing(capsys: pytest.CaptureFixture[str], folder: Path) -> list[dict]:
    capsys.readouterr()
    assert main(["runs", str(folder), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


class TestRuns:
    def test_the_newest_is_first_and_other_folders_are_left_out(self, capsys, folder: Path) -> None:
        new, old = listing(capsys, folder)
        assert (new["name"], old["name"]) == ("new", "old")
        assert (new["action"], new["model"], new["dataset"]) == ("train", "opt_lora_ags toy_opt", "toy_nli")
        assert (new["metric"], new["value"], new["state"], new["to_continue"]) == (
            "accuracy",
            0.484375,
            "finished",
            None,
        )
        assert new["parameters"] == json.loads((FIXTURES / "train" / "parameters.json").read_text())["trainable"]

    def test_the_table_cuts_nothing(self, capsys, monkeypatch, folder: Path) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        long = "opt_lora_classification_toy_nli_20261201-120000"
        (folder / "new").rename(folder / long)
        assert main(["runs", str(folder)]) == 0
        heading, first, second = capsys.readouterr().out.splitlines()
        assert heading.split() == ["name", "action", "model", "data", "parameters", "metric", "state", "started"]
        assert first.startswith(f"{long}  train")
        assert second.startswith("old ")

    def test_a_run_that_stopped_says_how_to_continue(self, capsys, world: World, tmp_path: Path) -> None:
        stops = ("--project-dir", tmp_path, "--project", "part", "--stop-after", 2)
        assert run(*world.training(*stops)) == 0
        (found,) = listing(capsys, tmp_path)
        assert (found["state"], found["step"]) == ("stopped", 2)
        assert found["to_continue"] == f"python -m main train --resume-training --load {tmp_path / 'part'}"
        assert main(["runs", str(tmp_path)]) == 0
        assert f"to continue part: {found['to_continue']}" in capsys.readouterr().out
        assert main([*found["to_continue"].split()[3:], "--logger", "none"]) == 0
        (found,) = listing(capsys, tmp_path)
        assert (found["state"], found["step"]) == ("finished", None)

    def test_a_run_that_is_in_use_is_running(self, capsys, folder: Path) -> None:
        with in_use(folder / "new"):
            assert [each["state"] for each in listing(capsys, folder)] == ["running", "finished"]
        assert [each["state"] for each in listing(capsys, folder)] == ["finished", "finished"]

    def test_a_damaged_run_gives_a_note(self, capsys, folder: Path) -> None:
        (folder / "new" / "metrics.json").write_text("[")
        assert main(["runs", str(folder)]) == 0
        said = capsys.readouterr().out
        assert "note: " in said
        assert "metrics.json" in said
        assert "\nold " in said

    def test_no_folder(self, capsys, tmp_path: Path) -> None:
        assert main(["runs", str(tmp_path / "nowhere")]) == 2
        assert "nowhere is no folder; give the folder of runs" in capsys.readouterr().err
        assert main(["runs", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"no runs in {tmp_path}\n"


class TestReport:
    def test_takes_a_folder_of_runs(self, folder: Path) -> None:
        report.main([str(folder), "--output", str(folder / "report.html")])
        page = (folder / "report.html").read_text()
        assert f"{folder.name}/new" in page or ">new<" in page
        assert "mlruns" not in page

    def test_leaves_out_what_is_no_run(self, capsys, folder: Path) -> None:
        report.main([*map(str, sorted(folder.iterdir())), "--output", str(folder.parent / "report.html")])
        said = capsys.readouterr().out
        assert f"note: {folder / 'mlruns'} is no run, and is left out" in said
        assert f"note: {folder / 'mlflow.db'} is no run, and is left out" in said

    def test_a_folder_that_is_not_there_is_an_error(self, folder: Path) -> None:
        with pytest.raises(UserError, match="nowhere is not there"):
            report.main([str(folder / "old"), str(folder / "nowhere"), "--output", str(folder / "report.html")])
