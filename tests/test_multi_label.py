"""Classification with several labels a row, from the file to the pipeline of the merged model."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from sklearn.metrics import f1_score, multilabel_confusion_matrix, precision_recall_fscore_support
from transformers import AutoConfig, pipeline

from actions.result.classes import by_class, read_classes
from actions.result.listing import readable
from dataset.reading.label_sets import in_one_text, names_in
from dataset.reading.own import describe
from dataset.reading.source import read_splits
from dataset.spec import DatasetSpec
from model import metrics
from options.data import OwnDataOptions
from tests.mistakes import complains, refused
from tests.world import World, run, write_jsonl
from tools import export, report

NAMES = ("film", "play", "song")


def tagged(rows: int, seed: int) -> list[tuple[str, list[str]]]:
    """Texts with the names that they hold, so that a tiny model can learn them."""
    draw = random.Random(seed)
    made = []
    for _ in range(rows):
        names = [name for name in NAMES if draw.random() < 0.5]
        made.append(("a " + " ".join(draw.sample([*names, "meal"], len(names) + 1)), names))
    return made


def write_tags(path: Path, rows: Sequence[tuple[str, list[str]]]) -> Path:
    lines = [f"{text},{';'.join(names) or '[]'}" for text, names in rows]
    path.write_text("\n".join(["text,tags", *lines]) + "\n")
    return path


def described(path: Path, **own: object) -> tuple[DatasetSpec, OwnDataOptions]:
    options = OwnDataOptions(text_columns="text", label_column="tags", **own)
    return describe(str(path), options, None, cache=False)


@pytest.mark.parametrize("name", ["marks.csv", "pandas.csv", "json.csv", "lists.jsonl", "lists.parquet"])
def test_lists_are_recognised_in_every_format(tmp_path: Path, name: str) -> None:
    rows, path = tagged(40, seed=1), tmp_path / name
    table = pandas.DataFrame(rows, columns=["text", "tags"])
    match name:
        case "marks.csv":
            write_tags(path, rows)
        case "pandas.csv":
            table.to_csv(path, index=False)  # ['film', 'play']
        case "json.csv":
            table.assign(tags=[json.dumps(names) for _, names in rows]).to_csv(path, index=False)
        case "lists.jsonl":
            write_jsonl(path, [{"text": text, "tags": names} for text, names in rows])
        case _:
            table.to_parquet(path)
    spec, own = described(path)
    assert (spec.labels, spec.multi_label, spec.metrics) == (NAMES, True, ("micro_f1", "macro_f1"))
    assert read_splits(spec, cache=False, share=0.0).train["tags"][:] == [
        [*map(NAMES.index, names)] for _, names in rows
    ]
    path.unlink()
    assert describe(str(path), own, "classification", cache=False)[0].multi_label, "as a checkpoint records it"


@pytest.mark.parametrize(
    ("labels", "own", "expected"),
    [
        (["a;b", "b", "c"], {}, ("a", "b", "c")),
        (["a;b", "c;d"], {}, None),  # the mark may be part of a name
        (["a;b", "c;d"], {"multi_label": True}, ("a", "b", "c", "d")),
        (["a;b", "b", "a;b"], {"multi_label": False}, None),
        ([[3], [10, 3], []], {}, ("3", "10")),
        (["x", "y", "x"], {"multi_label": True}, ("x", "y")),
    ],
)
def test_when_labels_are_several(tmp_path: Path, labels, own, expected: tuple[str, ...] | None) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"text": "a", "tags": label} for label in labels])
    spec, _ = described(tmp_path / "mine.jsonl", **own)
    assert spec.multi_label == (expected is not None)
    assert spec.labels == (expected or tuple(sorted({*labels})))


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b"), ("a;b", "c"), ("[x",), ('"', "ä")])
def test_predicted_labels_can_be_read_again(names: tuple[str, ...]) -> None:
    assert names_in(in_one_text(names)) == names
    assert in_one_text(names)


@pytest.mark.parametrize(
    ("labels", "own", "found", "advice"),
    [
        ([["a"], ["b", "a"], []], {"multi_label": False}, "has the label ", "--multi-label"),
        ([["a"], ["b", "a"]], {"labels": "a,b"}, "row 0 of split 'train'", "multi-label"),
        ([["a"], ["b"]], {"regression": True}, "has label ", "multi-label"),
        ([["a"], ["b", "c"]], {"labels": "a,b", "multi_label": True}, "has label 'c'", "--labels gives all"),
        ([["a"], None, ["b", "a"]], {}, "1 row without a label", "a row without any of the labels has []"),
        ([["a"], ["b"]], {"multi_label": True, "regression": True}, "--multi-label and --regression", "no numbers"),
        ([["a"], "b", 3], {}, "label 3", "all lists of names"),
        ([["a"], [["b"]]], {}, "a list of labels holds ['b']", "a list of names"),
        ([["a"], [None]], {}, "a list of labels holds None", "a list of names"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path: Path, labels, own, found: str, advice: str) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"text": "a", "tags": label} for label in labels])
    with refused(found, advice):
        read_splits(described(tmp_path / "mine.jsonl", **own)[0], cache=False, share=0.0)


@pytest.mark.parametrize("classes", [2, 5])
def test_f1_is_that_of_scikit_learn(classes: int) -> None:
    """Also of two classes, where the F1 of GLUE is that of the second one."""
    draw = torch.Generator().manual_seed(classes)
    logits = torch.randn(64, classes, generator=draw)
    labels = (torch.rand(64, classes, generator=draw) > 0.6).float()
    running = metrics.build(("micro_f1", "macro_f1"), classes, multi_label=True)
    for part in range(0, 64, 16):
        running.update(logits[part : part + 16], labels[part : part + 16])
    for name, value in running.compute().items():
        expected = f1_score(labels, logits > 0, average=name.removesuffix("_f1"))
        assert float(value) == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def trained(world: World, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A run whose training file is gone."""
    folder = tmp_path_factory.mktemp("tags")
    data = write_tags(folder / "tags.csv", tagged(160, seed=0))
    given = ("--load", world.opt, "--label-column", "tags", "--learning-rate", 0.03, "--max-epochs", 4)
    assert run("train", "opt_lora", data, *given, "--project-dir", folder, "--project", "run", "--row-results") == 0
    data.unlink()
    return SimpleNamespace(run=folder / "run", folder=folder)


def test_training_learns_and_writes_its_rows(trained: SimpleNamespace) -> None:
    figures = json.loads((trained.run / "metrics.json").read_text())
    assert {*figures["metrics"]["validation"]} == {"loss", "micro_f1", "macro_f1"}
    assert figures["metrics"]["validation"]["micro_f1"] > 0.75  # all labels for all rows give 0.67
    assert not (trained.run / "confusion.png").exists()
    with (trained.run / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels, confusion = read_classes(trained.run)
    true, predicted = (
        np.array([[place in json.loads(row[name]) for place in range(3)] for row in rows])
        for name in ("label", "predicted")
    )
    assert labels == NAMES
    assert confusion == {"validation": multilabel_confusion_matrix(true, predicted).tolist()}
    expected = precision_recall_fscore_support(true, predicted, zero_division=0)
    for place, each in enumerate(by_class(confusion["validation"], labels)):
        found = (each.precision, each.recall, each.f1, each.rows)
        assert found == pytest.approx([values[place] for values in expected])
    report.main([str(trained.run), "--output", str(trained.folder / "report.html")])
    page = (trained.folder / "report.html").read_text()
    assert f"{by_class(confusion['validation'], labels)[2].precision:.4f}" in page
    assert "Predictions on validation" not in page
    (listed,) = readable([trained.run])[0]
    assert listed.metric == "micro_f1", "which selects the best checkpoint"
    assert {row["correct"] for row in rows} <= {"0", "1"}
    for row in rows:
        assert (json.loads(row["label"]) == json.loads(row["predicted"])) == (row["correct"] == "1")


def test_predictions_are_those_of_the_pipeline_of_the_merged_model(trained: SimpleNamespace, capsys) -> None:
    texts = [text for text, _ in tagged(20, seed=5)]
    new = trained.folder / "new.csv"
    new.write_text("\n".join(["text", *texts]) + "\n")
    written = trained.folder / "merged"
    export.main([str(trained.run), "--format", "merged", "--output", str(written)])
    assert AutoConfig.from_pretrained(written).problem_type == "multi_label_classification"
    theirs = pipeline("text-classification", model=str(written), top_k=None)(texts)
    for number, load in enumerate((("--load", trained.run), ("--model", written))):
        output = trained.folder / f"out{number}.csv"
        assert run("predict", *load, "--dataset", new, "--output", output, "--probabilities") == 0
        with output.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len({row["labels"] for row in rows}) > 2
        for row, found in zip(rows, theirs, strict=True):
            scores = {each["label"]: each["score"] for each in found}
            assert {*names_in(row["labels"])} == {name for name, score in scores.items() if score > 0.5}
            for name, score in scores.items():
                assert float(row[f"probability_{name}"]) == pytest.approx(score, abs=1e-5)


def test_a_measured_loss_is_that_of_transformers(trained: SimpleNamespace) -> None:
    """Which takes the loss of `problem_type`."""
    from actions.command.parse import parse_command
    from actions.request.elements import request_of
    from actions.training.experiment import build
    from tests.world import command

    data = write_tags(trained.folder / "measured.csv", tagged(6, seed=8))
    experiment = build(request_of(parse_command(command("test", "--load", trained.run, "--dataset", data))))
    experiment.data.setup("test")
    batch = next(iter(experiment.data.test_dataloader()[0]))
    task = experiment.task.eval()
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    with torch.no_grad():
        ours, theirs = task.loss(batch), task.network(**inputs).loss
    assert float(ours.total / ours.count) == pytest.approx(float(theirs), rel=1e-6)


def test_scores_and_options_without_effect(trained: SimpleNamespace, world: World, tmp_path: Path, capsys) -> None:
    """Every heuristic takes the loss; alpha_test takes the metric."""
    data = write_tags(tmp_path / "tags.csv", tagged(24, seed=3))
    given = ("opt_lora", data, "--load", world.opt, "--label-column", "tags", "--project-dir", tmp_path)
    for name in ("grad_norm", "alpha_test"):
        scoring = ("--importance-test-name", name, "--imp-limit-test-batches", 2, "--imp-warmup-batches", 1)
        assert run("imp-test", *given, *scoring, "--project", name) == 0
    weights = ("--max-steps", 1, "--class-weights", "balanced", "--project", "weights")
    assert run("train", *given, *weights) == 0
    assert "--class-weights has no effect on multi-label classification" in capsys.readouterr().out


def test_several_labels_are_not_for_questions(world: World, tmp_path: Path, capfd) -> None:
    write_jsonl(tmp_path / "mine.jsonl", [{"text": "a", "choices": ["a", "b"], "tags": ["a"]}])
    columns = ("--prompt-column", "text", "--choices-column", "choices", "--label-column", "tags", "--multi-label")
    given = ("train", "opt_lora", tmp_path / "mine.jsonl", "--load", world.opt, *columns)
    complains(capfd, "--multi-label and --choices-column are both given", "", *given)
