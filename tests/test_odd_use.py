"""What a tired user does: variables of another program, files of another editor, an option given twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actions.command.parse import parse_command
from actions.request.trained_data import notes_on_classes
from actions.run.endings import FAILED, ended
from dataset import registry
from dataset.batching.sampler import epoch_order
from dataset.reading.own import describe
from dataset.reading.source import read_splits
from heterolora.common.errors import UserError
from heterolora.common.outside import read_toml
from options.data import OwnDataOptions
from tests.test_bad_input import complaint
from tests.world import World


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_a_rank_of_another_program(capfd, monkeypatch, world: World, tmp_path: Path, name: str) -> None:
    """This process would take itself for one of several, and write no results."""
    monkeypatch.setenv(name, "1")
    line = complaint(capfd, *world.training("--project-dir", tmp_path))
    assert f"the environment has {name}=1, and this run has one process; unset {name}" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--gradient-clip-val none", "--gradient-clip-val 'none' can't be read; give a number"),
        ("--optimizer none", "--optimizer 'none' is not known"),
        ("--load=", "--load is empty; give text, or leave it out"),
        ("--dataset a.csv --dataset b.csv", "--dataset is given twice: 'a.csv' and 'b.csv'; give it once"),
        ("--config a.toml --config b.toml", "--config is given twice: 'a.toml' and 'b.toml'; give it once"),
        ("--cache-frozen-prefix --cache-folder /proc", "/proc"),
    ],
)
def test_options(capfd, arguments: str, message: str) -> None:
    assert message in complaint(capfd, "train", *arguments.split())


def test_an_option_may_be_given_twice_with_one_value() -> None:
    assert parse_command(["train", "--dataset", "rte", "--dataset", "rte"]).options.dataset == "rte"


def test_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shell does not replace `~` after `=` or in a file."""
    monkeypatch.setenv("HOME", "/home/someone")
    (tmp_path / "options.toml").write_text('project_dir = "~/runs"\n')
    options = parse_command(["train", "--load=~/model", "--config", str(tmp_path / "options.toml")]).options
    assert (options.load, options.run.project_dir) == ("/home/someone/model", Path("/home/someone/runs"))


def test_a_file_of_an_editor_that_writes_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "options.toml").write_text("\ufeffrank = 4\n", encoding="utf-8")
    assert read_toml(tmp_path / "options.toml", "the options", "text") == {"rank": 4}


def test_whole_numbers_with_a_point_are_classes_or_numbers(tmp_path: Path) -> None:
    """pandas writes classes so if a row has none."""
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "good,1.0\nbad,0.0\n" * 20)
    with pytest.raises(UserError, match=r"whole numbers such as 1\.0.*; give --regression false to predict classes"):
        describe(str(path), OwnDataOptions(), None, False, ())
    assert describe(str(path), OwnDataOptions(regression=False), None, False, ())[0].labels == ("0", "1")
    assert describe(str(path), OwnDataOptions(regression=True), None, False, ())[0].regression


def test_files_of_a_folder_that_are_no_split_are_named(tmp_path: Path) -> None:
    for name in ("train", "train_extra", "Test"):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "good,yes\nbad,no\n" * 10)
    spec, _ = describe(str(tmp_path), OwnDataOptions(), None, False, ())
    splits = read_splits(spec, None, False, 0.1, 0)
    assert any(note.startswith("not read: train_extra;") for note in splits.notes)
    assert list(splits.test) == ["test"]


def test_a_batch_of_more_rows_than_there_are() -> None:
    assert sorted(epoch_order(5, 0, 0, True, 2**62, np.arange(5))) == [0, 1, 2, 3, 4]


def test_another_number_of_classes_than_those_of_the_head() -> None:
    with pytest.raises(UserError, match=r"with 3 labels \(a, b, c\), and rte has 2 .*; give data with these labels"):
        notes_on_classes(("a", "b", "c"), registry.get("rte"))


@pytest.mark.parametrize("failure", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 1")])
def test_the_memory_of_a_machine_without_a_gpu(capfd, failure: BaseException) -> None:
    def command() -> None:
        raise failure

    assert ended(command) == FAILED
    assert "error: the memory of the machine is full; use a smaller --batch-size" in capfd.readouterr().err
