"""The result of a classification by class: in the run folder, in the report, and equal to scikit-learn's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from actions.result.classes import by_class, read_classes
from heterolora.pictures.confusion import ConfusionMatrix
from heterolora.pictures.drawing import figure_of
from tests.mistakes import refused
from tests.world import World, run
from tools import report


def test_shares_are_those_of_scikit_learn() -> None:
    draw = np.random.default_rng(0)
    true, predicted = draw.integers(0, 3, 50), draw.integers(0, 4, 50)  # no row is of class 3
    found = by_class(confusion_matrix(true, predicted, labels=range(5)).tolist(), "abcde")  # and 4 is nowhere
    expected = zip(*precision_recall_fscore_support(true, predicted, labels=range(5), zero_division=0), strict=True)
    assert [each.name for each in found] == list("abcde")
    for each, (precision, recall, f1, rows) in zip(found, expected, strict=True):
        assert (each.precision, each.recall, each.f1) == pytest.approx((precision, recall, f1))
        assert each.rows == rows


def test_a_run_writes_its_confusion_matrices(capsys, world: World, tmp_path: Path) -> None:
    more = ("--project-dir", tmp_path, "--project", "run", "--max-steps", 2, "--row-results")
    assert run(*world.training(*more)) == 0
    said, folder = capsys.readouterr().out, tmp_path / "run"
    assert "Classes of validation" in said
    labels, confusion = read_classes(folder)
    rows = list(csv.DictReader((folder / "rows.csv").open()))
    true, predicted = ([int(float(row[name])) for row in rows] for name in ("label", "predicted"))
    assert labels == ("negative", "positive")
    assert confusion == {"validation": confusion_matrix(true, predicted, labels=[0, 1]).tolist()}
    assert (folder / "confusion.png").stat().st_size > 1000
    report.main([str(folder), "--output", str(tmp_path / "report.html")])
    page = (tmp_path / "report.html").read_text()
    assert "Predictions on validation" in page
    assert f"{by_class(confusion['validation'], labels)[1].recall:.4f}" in page


@pytest.mark.parametrize(
    "classes",
    [
        [], {"labels": ["a", "b"]}, {"labels": "ab", "confusion": {}},
        {"labels": ["a", "b"], "confusion": {"test": [[1, 2]]}},
        {"labels": ["a", "b"], "confusion": {"test": [[1, 2], [3, -1]]}},
    ],
)  # fmt: skip
def test_a_damaged_matrix_is_refused(tmp_path: Path, classes: object) -> None:
    (tmp_path / "metrics.json").write_text(json.dumps({"metrics": {}, "classes": classes}))
    with refused("metrics.json"):
        read_classes(tmp_path)


def test_the_picture_shows_each_count() -> None:
    picture = ConfusionMatrix("title", ("a", "b"), [[1, 2], [0, 0]])
    axes = figure_of(picture).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1", "2", "0", "0"]
    assert next(iter(picture.tips())).text == "a predicted as a: 1 rows, 33.3%"
