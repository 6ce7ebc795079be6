"""Data with nothing in it, and data with very many classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import f1_score

from heterolora.common.errors import UserError
from model.metrics import F1
from model.task.row_cache import RowCache
from tests.run_folders import LORA, trained_run
from tests.world import run, write_jsonl
from tools.studies.results import read_measured


@pytest.mark.parametrize("missing", ["nan", "null", ""])
def test_a_label_that_is_read_as_missing(tmp_path: Path, capsys, missing: str) -> None:
    (tmp_path / "data.csv").write_text("text,label\n" + f"a film,{missing}\nb film,1\n" * 3)
    assert run("train", "opt_lora", tmp_path / "data.csv", "--project-dir", tmp_path) == 2
    error = capsys.readouterr().err
    assert "has the label '1' or none: 3 rows are empty, nan or null; give every row a label" in error


@pytest.mark.parametrize(
    ("row", "more", "columns"),
    [
        ({"text": " ", "label": 1}, (), "'text'"),
        ({"premise": "", "hypothesis": "\n", "label": 1}, (), "'premise' and 'hypothesis'"),
        ({"text": ""}, (), "'text'"),
        ({"question": "", "answer": ""}, ("--prompt-column", "question", "--response-column", "answer"), "'question'"),
    ],
)
def test_texts_that_are_all_empty(tmp_path: Path, capsys, row: dict, more: tuple[str, ...], columns: str) -> None:
    rows = [{**row, **({"label": index % 2} if "label" in row else {})} for index in range(12)]
    write_jsonl(tmp_path / "data.jsonl", rows)
    words = ("train", "opt_lora", tmp_path / "data.jsonl", "--project-dir", tmp_path, "--max-steps", 1, *more)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert "all texts of split 'train'" in error
    assert f"are empty, in column {columns}" in error


@pytest.mark.parametrize("text", ["", "split,index,loss,count,correct,label,predicted\n"])
def test_a_run_of_a_study_without_rows(tmp_path: Path, text: str) -> None:
    folder = trained_run(tmp_path / "run", logger="none")
    (folder / LORA).write_text('granularity = "layer"\n')
    (folder / "rows.csv").write_text(text)
    with pytest.raises(UserError, match=r"rows\.csv has no rows; delete the run folder, and start the study again"):
        read_measured(SimpleNamespace(name="x"), folder, "loss", [], 1.0)


def test_a_row_of_a_study_that_counts_nothing(tmp_path: Path) -> None:
    folder = trained_run(tmp_path / "run", logger="none")
    (folder / LORA).write_text('granularity = "layer"\n')
    (folder / "rows.csv").write_text("split,index,loss,count,correct,label,predicted\nvalidation,0,1.0,0,,,\n")
    with pytest.raises(UserError, match=r"rows\.csv is damaged \(a count is 0\)"):
        read_measured(SimpleNamespace(name="x"), folder, "loss", [], 1.0)


def test_a_cache_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = RowCache(10**6, tmp_path / "file")
    with pytest.raises(
        UserError, match=r"cannot write into --cache-folder '.*file' \(Not a directory\); free space, or"
    ):
        cache.put(1, 0, torch.zeros(4))


def test_f1_of_many_classes_keeps_numbers_for_each_class_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    labels, found = (torch.randint(300, (400,), generator=generator) for _ in range(2))
    found[::3] = labels[::3]
    metric = F1(30_000)
    for part in (slice(0, 150), slice(150, None)):
        metric.update(found[part], labels[part])
    assert sum(getattr(metric, state).numel() for state in metric._defaults) == 3 * 30_000
    expected = f1_score(labels, found, average="macro", zero_division=0)
    assert float(metric.compute()) == pytest.approx(expected, rel=1e-6)


def test_no_warning_of_torch_before_an_error(tmp_path: Path, monkeypatch, recwarn: pytest.WarningsRecorder) -> None:
    def warns(*_: object, **__: object) -> None:
        warnings.warn_explicit("TypedStorage is deprecated", UserWarning, "torch/_utils.py", 1, "torch._utils")
        raise ValueError("it is damaged")

    (tmp_path / "a.ckpt").write_bytes(b"x")
    monkeypatch.setattr(torch, "load", warns)
    assert run("test", "--load", tmp_path / "a.ckpt", "--project-dir", tmp_path) == 2
    assert not [warning for warning in recwarn if "TypedStorage" in str(warning.message)]
