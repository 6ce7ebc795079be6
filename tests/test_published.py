"""The published tables follow from the published rows."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from benchmarks.published import FOLDER, compute, keep
from tests.quick import some_slow

ARCHIVES = sorted(FOLDER.glob("*.tar.xz"), key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    "archive",
    some_slow(ARCHIVES, quick=ARCHIVES[:1]),
    ids=lambda path: path.name,
)
def test_a_published_table_can_be_computed_again(archive: Path, tmp_path: Path) -> None:
    table, runs, picture = compute(archive, tmp_path)
    assert table.read_text() == (FOLDER / table.name).read_text()
    assert runs.read_text() == (FOLDER / runs.name).read_text()
    assert picture.stat().st_size > 0
    assert (FOLDER / picture.name).is_file()


def test_an_archive_has_no_path_of_the_machine(tmp_path: Path) -> None:
    study = tmp_path / "mine"
    run = study / "runs" / "sst2.drawn.seed0"
    run.mkdir(parents=True)
    (study / "jobs").mkdir()
    record = {"name": "sst2.drawn.seed0", "code": 0, "seconds": 2.5, "error": "", "digest": "1f"}
    (study / "jobs" / "sst2.drawn.seed0.json").write_text(json.dumps(record))
    (study / "jobs" / "sst2.drawn.seed0.started.json").write_text("{}")
    (study / "study.toml").write_text('load = "/home/someone/minilm"\n')
    (run / "metrics.json").write_text(json.dumps({"metrics": {}, "options": {"load": "/home/someone/minilm"}}))
    (run / "scores.toml").write_text('load = "/home/someone/minilm"\n')
    (run / "config.toml").write_text('load = "/home/someone/minilm"\n')
    keep(study, study / "study.toml", tmp_path / "mine.tar.xz")

    with tarfile.open(tmp_path / "mine.tar.xz") as packed:
        texts = {name: packed.extractfile(name).read().decode() for name in packed.getnames()}
    assert sorted(texts) == [
        "jobs/sst2.drawn.seed0.json", "runs/sst2.drawn.seed0/metrics.json", "runs/sst2.drawn.seed0/scores.toml",
        "study.toml",
    ]  # fmt: skip
    assert not any("someone" in text for text in texts.values())
    assert texts["study.toml"] == 'load = "minilm"\n'
    assert json.loads(texts["jobs/sst2.drawn.seed0.json"])["seconds"] == 2.5
