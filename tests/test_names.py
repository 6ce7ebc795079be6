"""Names of files and folders that are too long for the system, or not UTF-8."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from actions.run.endings import ended
from heterolora.common.errors import UserError
from tests.run_folders import dynamic_run, scored_run, trained_run
from tests.studies import DRAWN, ON_TOY_DATA, UNIFORM, study_text
from tests.world import World, run
from tools import compare_scores, export, inspect_model, plot_realloc, realloc_lora_rank, report, study

LONG = "é" * 200  # 400 bytes
ODD = os.fsdecode(b"\xff\xfe")


@pytest.mark.parametrize(
    "flag",
    [
        "--dataset",
        "--dataset-saved-path",
        "--load",
        "--cache-folder",
        "--lora-config",
        "--config",
        "--project",
        "--project-dir",
        "--model",
    ],
)
@pytest.mark.parametrize("where", ["", "/tmp/", "a/", "./"])
def test_names_that_are_too_long(world: World, tmp_path: Path, monkeypatch, capsys, flag: str, where: str) -> None:
    monkeypatch.chdir(tmp_path)
    more = ("--cache-frozen-prefix",) if flag == "--cache-folder" else ()
    words = [*world.training("--project-dir", tmp_path, *more, "--max-steps", 1, "--max-epochs", 1)]
    assert run(*words, flag, f"{where}{LONG}") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


def _tools(folder: Path, name: str) -> dict[str, Callable[[], None]]:
    trained, scored = trained_run(folder / "run", logger="none"), scored_run(folder / "scored", layers=2)
    dynamic = dynamic_run(folder / "dynamic", layers=2, epochs=(0, 1), logger="none")
    spec = folder / "study.toml"
    spec.write_text(study_text(ON_TOY_DATA, UNIFORM, DRAWN))
    budget = ["--turn-on-percentile", "0.5"]
    return {
        "report": partial(report.main, [str(trained), "--output", name]),
        "report of": partial(report.main, [name]),
        "plot": partial(plot_realloc.main, [str(dynamic), "--output", name]),
        "plot of": partial(plot_realloc.main, [name]),
        "realloc": partial(realloc_lora_rank.main, [str(scored), *budget, "--output", name]),
        "realloc of": partial(realloc_lora_rank.main, [name, *budget, "--output", str(folder / "x")]),
        "compare": partial(compare_scores.main, [name, str(scored / "scores.toml")]),
        "inspect": partial(inspect_model.main, ["--load", name]),
        "export": partial(export.main, [str(trained), "--format", "peft", "--output", name]),
        "export of": partial(export.main, [name, "--format", "peft", "--output", str(folder / "x")]),
        "study": partial(study.main, [str(spec), "--output", name]),
        "study reported": partial(study.main, [str(spec), "--report-only", "--output", name]),
        "study of": partial(study.main, [name]),
    }


@pytest.mark.parametrize("tool", [
    "report", "report of", "plot", "plot of", "realloc", "realloc of", "compare", "inspect", "export", "export of",
    "study", "study reported", "study of",
])  # fmt: skip
@pytest.mark.parametrize("name", [LONG, f"/tmp/{LONG}/x", f"a/{LONG}", "loop", "loop/x"])
def test_tools_and_names_that_are_too_long_or_links_to_themselves(
    tmp_path: Path, monkeypatch, capsys, tool: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    assert ended(_tools(tmp_path, name)[tool]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(os.name == "nt", reason="file names of Windows are text")
class TestNotUtf8:
    def test_a_report_of_such_a_folder_and_into_one(self, tmp_path: Path) -> None:
        folder = trained_run(tmp_path / "run", logger="none").rename(tmp_path / ODD)
        output = tmp_path / f"{ODD}.html"
        report.main([str(folder), "--output", str(output)])
        assert "\\udcff\\udcfe" in output.read_text(encoding="utf-8")

    @pytest.mark.parametrize("form", ["peft", "merged"])
    def test_an_export_is_refused_first(self, tmp_path: Path, form: str) -> None:
        with pytest.raises(UserError, match=r"the name of the folder '.*\\udcff\\udcfe' is not UTF-8"):
            export.main([str(tmp_path), "--format", form, "--output", str(tmp_path / ODD)])
        assert not list(tmp_path.iterdir())

    def test_a_run_is_refused_first(self, world: World, tmp_path: Path, capsys) -> None:
        assert run(*world.training("--project-dir", tmp_path / ODD)) == 2
        assert (
            "give text without control characters, and outside ASCII only in a UTF-8 locale" in capsys.readouterr().err
        )
        assert not list(tmp_path.iterdir())
