"""Outputs of the tools, onto every kind of file: what the user has there is not lost."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from heterolora.common.errors import UserError
from heterolora.common.files import whole_folder, write_text
from tests.run_folders import dynamic_run, scored_run, trained_run
from tests.studies import DRAWN, ON_TOY_DATA, UNIFORM, study_text
from tests.world import World, run
from tools import plot_realloc, realloc_lora_rank, report, study

LONG = "é" * 200  # 400 bytes

Written = Callable[[Path], None]


@pytest.fixture(params=["report", "realloc_lora_rank", "plot_realloc"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Written, str]:
    """Write a folder's output of a tool, and the name of its file."""
    inputs = tmp_path / "inputs"
    if request.param == "report":
        folder = trained_run(inputs / "run", logger="none")
        return lambda path: report.main([str(folder), "--output", str(path / "x.html")]), "x.html"
    if request.param == "plot_realloc":
        folder = dynamic_run(inputs / "run", layers=2, epochs=(0, 1), logger="none")
        return lambda path: plot_realloc.main([str(folder), "--output", str(path)]), "reallocation_timeline.png"
    folder = scored_run(inputs / "run", layers=2, shortcuts=False)
    budget = ("--turn-on-percentile", "0.5")
    return lambda path: realloc_lora_rank.main([str(folder), *budget, "--output", str(path / "x.toml")]), "x.toml"


def test_a_file_of_the_user_stays(written: tuple[Written, str], tmp_path: Path) -> None:
    write, name = written
    path = tmp_path / name
    path.write_text("precious")
    with pytest.raises(UserError, match="exists, and this tool did not write it; give another name, or --overwrite"):
        write(tmp_path)
    assert path.read_text() == "precious"


def test_its_own_and_an_empty_file_are_replaced(written: tuple[Written, str], tmp_path: Path) -> None:
    write, name = written
    path = tmp_path / name
    path.touch()
    write(tmp_path)
    first = path.stat().st_ino
    write(tmp_path)
    assert path.stat().st_size > 100
    assert path.stat().st_ino != first


@pytest.mark.parametrize("kind", ["relative", "dangling"])
def test_a_link_is_followed(written: tuple[Written, str], tmp_path: Path, kind: str) -> None:
    write, name = written
    target = tmp_path / "elsewhere"
    if kind == "relative":
        target.touch()
    (tmp_path / name).symlink_to("elsewhere")
    write(tmp_path)
    assert (tmp_path / name).is_symlink()
    assert target.stat().st_size > 100


def test_a_pipe_is_written_into(written: tuple[Written, str], tmp_path: Path) -> None:
    write, name = written
    pipe, found = tmp_path / name, []
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="start the program that reads the pipe first"):
        write(tmp_path)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    reading = threading.Thread(target=lambda: found.append(open(reader, "rb").read()))  # noqa: SIM115
    keep = os.open(pipe, os.O_WRONLY)  # the reader waits until both writers are done
    reading.start()
    write(tmp_path)
    os.close(keep)
    reading.join()
    assert pipe.is_fifo()
    assert len(found[0]) > 100


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="only root makes devices")
def test_a_device_stays_one(written: tuple[Written, str], tmp_path: Path) -> None:
    write, name = written
    try:
        os.mknod(tmp_path / name, 0o20666, os.makedev(1, 3))  # as /dev/null is
    except PermissionError:
        pytest.skip("this container makes no devices")
    write(tmp_path)
    assert (tmp_path / name).is_char_device()


def test_a_socket_is_no_place_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("x")
        with pytest.raises(UserError, match="cannot write"):
            write_text(tmp_path / "x", "text")


def test_overwrite(tmp_path: Path) -> None:
    folder, page = trained_run(tmp_path / "run", logger="none"), tmp_path / "x.html"
    page.write_text("old")
    report.main([str(folder), "--output", str(page), "--overwrite"])
    assert page.read_text().startswith("<!doctype html>")


def test_a_folder_of_the_user_is_no_study(tmp_path: Path, start: object) -> None:
    (tmp_path / "study.toml").write_text(study_text(ON_TOY_DATA, UNIFORM, DRAWN))
    (tmp_path / "report.md").write_text("precious")
    with pytest.raises(UserError, match=r"report\.md exists, and this tool did not write it"):
        study.main([str(tmp_path / "study.toml"), "--output", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.md", "study.toml"]


# ---- the adapter of a run


def test_other_entries_of_a_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "notes" / "more").mkdir(parents=True)
    for name in ("weights", "shortcuts", "notes/a", "notes/more/b"):
        (folder / name).write_text("old")
    (folder / "link").symlink_to("weights")
    inode = (folder / "notes" / "a").stat().st_ino
    with whole_folder(folder, replaces=["shortcuts"]) as unfinished:
        (unfinished / "weights").write_text("new")
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    assert found == {"weights", "link", "notes", "notes/a", "notes/more", "notes/more/b"}
    assert (folder / "link").read_text() == "new"
    assert (folder / "notes" / "a").stat().st_ino == inode
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("linked", [False, True])
def test_resuming_keeps_the_users_files_beside_the_adapter(world: World, tmp_path: Path, linked: bool) -> None:
    place = ("--project-dir", tmp_path, "--project", "run", "--measured", "last")
    assert run(*world.training(*place, "--max-steps", 1, "--max-epochs", 1)) == 0
    folder = tmp_path / "run" / "adapter"
    if linked:
        folder = folder.rename(tmp_path / "elsewhere")
        (tmp_path / "run" / "adapter").symlink_to(folder)
    (folder / "notes.md").write_text("precious")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert run("train", "--resume-training", "--load", last, "--max-steps", 3) == 0
    assert (folder / "notes.md").read_text() == "precious"
    assert (folder / "adapter_model.safetensors").read_bytes() != weights
