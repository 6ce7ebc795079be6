"""The program runs where the environment offers little: an ASCII locale, no home folder, no terminal, no stdin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.world import ROOT, World, command, sentences

BARE = {  # the whole environment; Python neither changes the locale nor assumes UTF-8
    "PATH": os.environ["PATH"],
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def bare(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program without stdin."""
    return subprocess.run(
        ["/bin/sh", "-c", 'exec "$@" <&-', "sh", sys.executable, *arguments],
        cwd=ROOT,
        env={**BARE, "HF_HOME": str(tmp_path / "hub"), "HF_DATASETS_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_a_bare_environment(world: World, tmp_path: Path) -> None:
    """ASCII lacks letters of the rows, and the dash that is shown for scores of 0."""
    data = tmp_path / "data"
    data.mkdir()
    for split, rows, seed in (("train", 16, 1), ("validation", 4, 2)):
        made = [{**row, "sentence": f"{row['sentence']} für 日本"} for row in sentences(rows, seed)]
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (data / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    shared = ("opt_lora", "sst2", "--load", world.opt, "--pretrained", "--dataset-saved-path", data, "--max-epochs", 1)
    where = ("--lora-config", world.lora, "--project-dir", tmp_path / "runs")
    scoring = ("--importance-test-name", "snip", "--imp-warmup-batches", 0, "--project", "scored")
    scored = command("imp-test", *shared, *where, *scoring)
    trained = command("train", *shared, *where, "--project", "trained")[:-2]  # with a logger
    program = f"import sys; from main import main; sys.exit(main({scored!r}) or main({trained!r}))"
    done = bare(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr
    assert "\\u2013" in done.stdout
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "trained" / "metrics.json").is_file()


@pytest.mark.parametrize("given", ["--project ü", "--config options.toml"])
def test_names_that_the_locale_lacks(tmp_path: Path, given: str) -> None:
    (tmp_path / "options.toml").write_text('project = "ü"\n', encoding="utf-8")
    done = bare(tmp_path, "-m", "main", "train", *given.replace("options.toml", str(tmp_path / "options.toml")).split())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "LC_ALL=C.UTF-8" in done.stderr


def test_help_of_a_tool(tmp_path: Path) -> None:
    """Its text has letters that ASCII lacks."""
    done = bare(tmp_path, "tools/realloc_lora_rank.py", "--help")
    assert done.returncode == 0, done.stderr
