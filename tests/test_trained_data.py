"""A loaded model meets other data than those it was trained on: other classes, another path, changed rows."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from actions.command.parse import parse_command
from actions.command.request import Request
from actions.request.elements import request_of
from dataset import registry
from tests.world import World, metrics_of, model_folder, run, sentences, write_jsonl

QQP = registry.get("qqp").labels


def resolved(*arguments: object) -> Request:
    return request_of(parse_command([str(argument) for argument in arguments]))


def small(world: World, folder: Path, *more: object) -> tuple[object, ...]:
    """The rest of a command that trains `opt_lora` for a step, in `folder`/run."""
    sizes = ("--batch-size", 4, "--max-steps", 1, "--project-dir", folder, "--project", "run")
    return ("--load", world.opt, "--lora-config", world.lora, *sizes, *more)


# ---- classes


@pytest.fixture(scope="module")
def questions(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on `qqp`, and beside it its validation rows as own data."""
    folder = tmp_path_factory.mktemp("questions")
    for split, rows, seed in (("train", 16, 1), ("validation", 13, 2)):
        made = [{"question1": row["sentence"], "question2": "a film", **row} for row in sentences(rows, seed)]
        write_jsonl(folder / "qqp" / f"{split}.jsonl", made)
    mine = ["question1,question2,label", *(f"{row['question1']},a film,{QQP[row['label']]}" for row in made)]
    (folder / "mine.csv").write_text("\n".join(mine) + "\n")
    (folder / "other.csv").write_text("\n".join(mine).replace("not_duplicate", "no").replace("duplicate", "yes"))
    place = ("--dataset-saved-path", folder / "qqp", "--learning-rate", 0.01)
    assert run("train", "opt_lora", "qqp", *small(world, folder, *place)) == 0
    return folder


def test_own_data_keep_the_order_of_the_head(capfd, questions: Path) -> None:
    """The labels have another order when they are sorted. The same rows have the same metrics."""
    own = ("--dataset", questions / "mine.csv", "--text-columns", "question1,question2", "--label-column", "label")
    assert sorted(QQP) == [*reversed(QQP)]
    for name, loaded in {"checkpoint": questions / "run", "adapter": questions / "run" / "adapter"}.items():
        assert run("test", "--load", loaded, *own, "--project-dir", questions, "--project", name) == 0
        (found,), (expected,) = (metrics_of(questions / each).values() for each in (name, "run"))
        assert found == pytest.approx({key: expected[key] for key in found})
        assert "the head was trained with" not in capfd.readouterr().out
    options = tomllib.loads((questions / "checkpoint" / "config.toml").read_text())
    assert options["labels"] == "not_duplicate,duplicate"
    assert resolved("train", "--load", questions / "run", *own).spec.labels == QQP


def test_a_pretrained_head_keeps_its_order(world: World, tmp_path: Path) -> None:
    """Two models that differ in the order of their labels alone, as those of MNLI on the hub do."""
    one, other = (model_folder(tmp_path / name, "opt", "classification", num_labels=2) for name in ("one", "other"))
    for folder, names in ((one, ("negative", "positive")), (other, ("POSITIVE", "NEGATIVE"))):
        config = json.loads((folder / "config.json").read_text())
        config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
        (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(other / "model.safetensors")
    weights["score.weight"] = weights["score.weight"].flip(0)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    for folder in (one, other):
        project = ("--project-dir", tmp_path, "--project", f"{folder.name}-run")
        assert run("test", "--model", folder, "--dataset", "sst2", "--dataset-saved-path", world.sst2, *project) == 0
    assert metrics_of(tmp_path / "one-run") == metrics_of(tmp_path / "other-run")


def test_an_encoder_is_no_language_model(world: World, tmp_path: Path, capfd) -> None:
    folder = model_folder(tmp_path / "encoder", "roberta", "classification")
    data = ("--dataset", "wikitext2", "--dataset-saved-path", tmp_path, "--project-dir", tmp_path)
    assert run("test", "--model", folder, *data) == 2
    assert "roberta models cannot write text, they classify texts; give data with labels" in capfd.readouterr().err


def test_other_labels_than_those_of_the_head_are_noted(questions: Path) -> None:
    own = ("--load", questions / "run", "--text-columns", "question1,question2", "--label-column", "label", "--dataset")
    said = "the head was trained with the labels not_duplicate, duplicate; those of "
    for arguments, others in {
        ("mine.csv", "--labels", "duplicate,not_duplicate"): "mine are duplicate, not_duplicate",
        ("other.csv",): "other are no, yes",
    }.items():
        notes = resolved("test", *own, questions / arguments[0], *arguments[1:]).notes
        assert notes == (f"{said}{others}, and are taken for them in this order",)
    notes = resolved("test", "--load", questions / "run", "--dataset", "rte").notes
    assert notes == (f"{said}rte are entailment, not_entailment, and are taken for them in this order",)
    assert not resolved("test", "--load", questions / "run", "--dataset", "stsb").notes, "a regression"


# ---- rows


@pytest.fixture
def reviews(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Own data, on which a run beside them was trained. The command named them from their folder."""
    rows = [f"{row['sentence']},{row['label']}" for row in sentences(40, seed=1)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        own = ("--dataset", "reviews.csv", "--validation-share", 0.2)
        assert run("train", "opt_lora", *small(world, tmp_path, *own)) == 0
    return tmp_path / "reviews.csv"


def test_the_held_out_rows_from_another_folder(capfd, reviews: Path, tmp_path: Path) -> None:
    """By another path and without a path. Rows that are appended change what is held out, which a note says."""
    (link := tmp_path / "link.csv").symlink_to(reviews)
    checkpoint = ("--load", tmp_path / "run")
    for place in ((), ("--dataset", reviews), ("--dataset", link)):
        assert resolved("test", *checkpoint, *place).options.data.validation_share == 0.2
    changed = "the rows of reviews have changed since training: rows that were trained on may be measured"
    test = ("test", *checkpoint, "--project-dir", tmp_path)
    assert run(*test) == 0
    assert changed not in capfd.readouterr().out
    reviews.write_text(reviews.read_text() + "a good film,1\na bad play,0\n")
    for more, noted in {(): True, ("--validation-share", "0"): False}.items():
        assert run(*test, *more) == 0
        assert (changed in capfd.readouterr().out) == noted


# ---- resuming


def test_spaces_between_the_columns_of_a_prompt(world: World, tmp_path: Path) -> None:
    rows = [{"what": "a film", "input": "", "answer": row["sentence"]} for row in sentences(40, seed=1)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    own = ("--dataset", tmp_path / "mine.jsonl", "--prompt-column", "what, input", "--response-column", "answer")
    assert run("train", "opt_lora", *small(world, tmp_path, *own)) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", last, *own, "--max-steps", 2) == 0
