"""A resumed run refuses options that would make it another run, before it reads the model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from options.actions import DYREALLOC, TRAIN
from options.every import declared
from tests.test_bad_input import complaint
from tests.world import ROOT, World, command, run, sst2_folder, write_jsonl


def checkpoint(world: World, folder: Path, project: str, *more: object, action: str = "train") -> Path:
    _, _, *rest = world.training("--project-dir", folder, "--project", project, *more)
    assert run(action, "opt_lora", *rest) == 0
    return folder / project / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def inside(world: World, folder: Path) -> Path:
    """Saved 4 batches into an epoch of 12."""
    return checkpoint(world, folder, "inside", "--max-steps", 2, "--accumulate-grad-batches", 2)


@pytest.fixture(scope="module")
def between(world: World, folder: Path) -> Path:
    """Saved at the end of an epoch."""
    return checkpoint(world, folder, "between", "--max-epochs", 1, "--accumulate-grad-batches", 2)


@pytest.fixture(scope="module")
def searching(world: World, folder: Path) -> Path:
    """Of a search with scores from dedicated batches."""
    search = ("--imp-limit-test-batches", 1, "--max-steps", 1)
    return checkpoint(world, folder, "searching", *search, action="train-dyrealloc")


FIXED = {
    "seed": 1,
    "learning_rate": 0.5,
    "optimizer": "sgd",
    "lr_scheduler": "linear",
    "warmup_steps": 3,
    "weight_decay": 0.5,
    "accumulate_grad_batches": 3,
    "limit_train_batches": 3,
    "limit_val_batches": 1,
    "gradient_clip_val": 0.5,
    "precision": "bf16-mixed",
    "max_token_len": 20,
}


class TestFixed:
    @pytest.mark.parametrize("name", FIXED)
    def test_never_changes(
        self, capfd, inside: Path, between: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("actions.training.experiment.load_base", None)  # the model is not loaded
        for saved in (inside, between):
            flag = declared()[name].flag
            line = complaint(capfd, *command("train", "--resume-training", "--load", saved, flag, FIXED[name]))
            was = torch.load(saved, weights_only=True)["heterolora"]["options"].get(name, "none")
            assert f"{flag} is {FIXED[name]}, but the run to resume has {was}" in line
            assert "without --resume-training" in line.split(";")[1]

    def test_equal_values_may_be_given(self, inside: Path) -> None:
        given = ("--seed", 0, "--learning-rate", 1e-2, "--accumulate-grad-batches", 2, "--batch-size", 4)
        assert run("train", "--resume-training", "--load", inside, *given, "--max-steps", 2) == 0

    def test_source_of_the_scores(self, capfd, searching: Path) -> None:
        arguments = ("train-dyrealloc", "--resume-training", "--load", searching, "--imp-source", "training")
        line = complaint(capfd, *command(*arguments))
        assert "--imp-source is training, but the run to resume has dedicated" in line


class TestEpochEnd:
    @pytest.mark.parametrize("given", [("--group-by-length", "false"), ("--val-check-interval", 4)])
    def test_changes_only_between_epochs(self, capfd, inside: Path, between: Path, given: tuple[object, ...]) -> None:
        line = complaint(capfd, *command("train", "--resume-training", "--load", inside, *given))
        assert f"{given[0]} is {given[1]}, but the run to resume has" in line
        assert "the checkpoint is 4 batches into an epoch; leave it out, or resume from" in line
        assert run("train", "--resume-training", "--load", between, *given, "--max-epochs", 1) == 0


class TestGlobalBatch:
    @pytest.mark.parametrize("given", [("--batch-size", 8), ("--num-devices", 2)])
    def test_changes_never(self, capfd, between: Path, given: tuple[object, ...]) -> None:
        line = complaint(capfd, *command("train", "--resume-training", "--load", between, *given))
        assert "--batch-size × --num-devices × --num-nodes is 8, but the run to resume has 4;" in line

    def test_scoring_batches_have_as_many_rows(self, capfd, searching: Path) -> None:
        more = ("--batch-size", 2, "--num-devices", 2)
        line = complaint(capfd, *command("train-dyrealloc", "--resume-training", "--load", searching, *more))
        assert "--batch-size is 2, but the run to resume has 4" in line


@pytest.mark.parametrize(
    ("cut", "refused", "equal"),
    [
        (("--max-epochs", 2), {"epochs": (1, 2), "steps": (23, 24)}, ("--max-epochs", 2)),
        (("--max-steps", 14), {"epochs": (1, 2), "steps": (13, 14)}, ("--max-steps", 14)),  # inside the second epoch
    ],
)
def test_an_end_before_the_checkpoint(
    capfd, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut, refused, equal
) -> None:
    saved = checkpoint(world, tmp_path, "run", *cut)
    assert run("train", "--resume-training", "--load", saved, *equal) == 0
    monkeypatch.setattr("actions.training.experiment.load_base", None)  # the model is not loaded
    for unit, (asked, done) in refused.items():
        line = complaint(capfd, *command("train", "--resume-training", "--load", saved, f"--max-{unit}", asked))
        assert f"--max-{unit} {asked} is less than the {done} {unit} of the checkpoint; give at least {done}" in line


def test_a_checkpoint_from_inside_a_window(capfd, inside: Path) -> None:
    """Older versions saved such a best.ckpt."""
    contents = torch.load(inside, weights_only=True)
    contents["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"] = 3
    torch.save(contents, inside.with_name("best.ckpt"))
    line = complaint(capfd, *command("train", "--resume-training", "--load", inside.with_name("best.ckpt")))
    assert "3 batches into an epoch, inside an accumulation window of 2; resume from last.ckpt" in line


class TestData:
    def test_other_rows_in_the_same_place(self, capfd, world: World, tmp_path: Path) -> None:
        data = sst2_folder(tmp_path / "data")
        saved = checkpoint(world, tmp_path, "run", "--max-steps", 2, "--dataset-saved-path", data)
        moved = data.rename(tmp_path / "moved")
        again = ("train", "--resume-training", "--load", saved, "--dataset-saved-path", moved)
        assert run(*again, "--max-steps", 3) == 0
        rows = [json.loads(line) for line in (moved / "train.jsonl").read_text().splitlines()]
        rows[20]["label"] = 1 - rows[20]["label"]
        write_jsonl(moved / "train.jsonl", rows)
        assert "digest of the rows" in complaint(capfd, *command(*again, "--max-steps", 4))


def test_a_new_length_of_a_schedule_is_noted(capfd, world: World, tmp_path: Path) -> None:
    saved = checkpoint(world, tmp_path, "run", "--max-steps", 2, "--lr-scheduler", "linear")
    for length, is_said in (((), False), (("--max-steps", 2), False), (("--max-steps", 3), True)):
        capfd.readouterr()
        assert run("train", "--resume-training", "--load", saved, *length) == 0
        assert ("note: --max-steps changes the length of the run" in capfd.readouterr().out) is is_said


def test_every_option_is_one_that_may_change_or_not() -> None:
    """`fixed` is the default, so that a new option is refused until somebody decides otherwise."""
    used = [info for info in declared().values() if info.used_by(TRAIN) or info.used_by(DYREALLOC)]
    assert {info.resume for info in used} == {"fixed", "epoch_end", "global_batch", "free", "start"}
    model = [info for info in used if info.from_checkpoint and info.name != "dataset_saved_path"]
    assert {info.resume for info in model} == {"fixed"}
    page = (ROOT / "docs" / "resuming.md").read_text(encoding="utf-8")
    stated = {row.split("|")[1].strip(): re.findall(r"`(--[\w-]+)`", row) for row in re.findall(r"^\|.*$", page, re.M)}
    of_page = {
        "free": "at any time",
        "epoch_end": "if the checkpoint is from the end of an epoch",
        "global_batch": "if their product stays the same",
    }
    for kind, words in of_page.items():
        assert stated[words] == [info.flag for info in used if info.resume == kind], words
