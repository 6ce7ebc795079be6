"""Files are there whole or not at all; TOML is read back as it was written."""

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from heterolora.common.errors import UserError
from heterolora.common.files import remove_leftovers, whole, whole_folder, write_text, write_toml
from heterolora.common.outside import read_toml


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "picture.png"
    with whole(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists()
        assert unfinished.suffix == ".png"  # some writers choose the format by it
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


def _write_half(path: Path, reason: type[BaseException]) -> None:
    with whole(path) as unfinished:
        unfinished.write_text("half")
        raise reason


@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError])
def test_what_stood_there_stays_when_writing_fails(tmp_path: Path, reason: type[BaseException]) -> None:
    path = tmp_path / "scores.toml"
    path.write_text("old")
    with pytest.raises(reason):
        _write_half(path, reason)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "é")
    assert (tmp_path / "file").read_bytes() == "é".encode()
    for path in (tmp_path, tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write"):
            write_text(path, "text")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "made" / "adapter"
    for content in ("first", "second"):
        with whole_folder(path) as unfinished:
            (unfinished / content).touch()
            assert unfinished.parent == path.parent
        assert [entry.name for entry in path.iterdir()] == [content]
    with pytest.raises(KeyboardInterrupt):
        _make_half(path)
    assert [entry.name for entry in path.iterdir()] == ["second"]
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_process_with_the_same_id_left_is_replaced(tmp_path: Path) -> None:
    for left in ("tmp", "old"):
        folder = tmp_path / f".adapter.{os.getpid()}.{left}"
        folder.mkdir()
        (folder / "half").touch()
    (tmp_path / "adapter").mkdir()
    with whole_folder(tmp_path / "adapter") as unfinished:
        (unfinished / "new").touch()
    assert [entry.name for entry in (tmp_path / "adapter").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [tmp_path / "adapter"]


def _make_half(path: Path) -> None:
    with whole_folder(path) as unfinished:
        (unfinished / "third").touch()
        raise KeyboardInterrupt


class TestDurable:
    """What a loss of power, a kill or a full disk leaves."""

    def test_a_file_is_on_the_disk_before_it_has_its_name(self, tmp_path: Path, monkeypatch) -> None:
        done: list[str] = []
        flush, rename = os.fsync, os.replace

        def noting_flush(descriptor: int) -> None:
            flush(descriptor)
            done.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).relative_to(tmp_path)}")

        def noting_rename(source: Path, target: Path) -> None:
            rename(source, target)
            done.append(f"rename {Path(target).relative_to(tmp_path)}")

        monkeypatch.setattr(os, "fsync", noting_flush)
        monkeypatch.setattr(os, "replace", noting_rename)
        with whole(tmp_path / "runs" / "a.toml") as unfinished:
            unfinished.touch()
        name = unfinished.relative_to(tmp_path)
        assert done == ["flush .", f"flush {name}", "rename runs/a.toml", "flush runs"]
        done.clear()
        with whole_folder(tmp_path / "adapter") as folder:
            (folder / "weights").touch()
        assert done == [f"flush {folder.name}/weights", f"flush {folder.name}", "rename adapter", "flush ."]

    @pytest.mark.parametrize(("umask", "permissions"), [(0o022, 0o644), (0o027, 0o640)])
    def test_permissions_are_those_of_new_files(self, tmp_path: Path, umask: int, permissions: int) -> None:
        earlier = os.umask(umask)
        try:
            write_text(tmp_path / "text", "")
            with whole_folder(tmp_path / "folder") as folder:
                save_file({"weight": torch.zeros(1)}, folder / "private")
        finally:
            os.umask(earlier)
        for path in (tmp_path / "text", tmp_path / "folder" / "private"):
            assert path.stat().st_mode & 0o777 == permissions

    def test_leftovers_of_killed_processes_are_removed_by_the_next_writer(self, tmp_path: Path) -> None:
        ended = subprocess.Popen(["true"])
        ended.wait()
        host = _name_while_written(tmp_path).split(".")[2].split("-")[0]
        here, running, elsewhere = f"{host}-{ended.pid}", f"{host}-{os.getppid()}", f"00000000-{ended.pid}"
        kept = [f".x.{running}.tmp.toml", f".x.{elsewhere}.tmp.toml", f".y.{here}.tmp.toml", f".x.{here}.tmp.png"]
        for name in (*kept, f".x.{here}.tmp.toml", f".x.{ended.pid}.tmp.toml"):
            (tmp_path / name).touch()
        write_text(tmp_path / "x.toml", "")
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "x.toml"])
        remove_leftovers(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept[:2], "x.toml"])
        remove_leftovers(tmp_path, exclusive=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([kept[0], "x.toml"])

    def test_a_folder_that_was_about_to_be_replaced_is_put_back(self, tmp_path: Path) -> None:
        left = tmp_path / f".adapter.{os.getpid()}.old"
        left.mkdir()
        (left / "weights").touch()
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.rglob("*")] == ["adapter", "weights"]

    def test_a_link_to_a_folder_stays(self, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "adapter").symlink_to("elsewhere")
        with whole_folder(tmp_path / "adapter") as folder:
            (folder / "new").touch()
        assert (tmp_path / "adapter").is_symlink()
        assert (tmp_path / "elsewhere" / "new").is_file()
        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("writer", ["text", "torch", "safetensors"])
    def test_a_limit_on_the_size_of_files_is_one_line(self, tmp_path: Path, small_files: int, writer: str) -> None:
        (tmp_path / "old").write_text("old")
        with pytest.raises(UserError, match=r"cannot write '.*old' \(File too large\); raise the limit"):
            _write(tmp_path / "old", small_files + 1, writer)
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

    @pytest.mark.parametrize("write", [whole, whole_folder])
    def test_a_full_disk_is_one_line(self, tmp_path: Path, write: Callable[[Path], Any]) -> None:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        message = r"cannot write '.*x' \(No space left on device\); free space"
        with pytest.raises(UserError, match=message), write(tmp_path / "x"):
            raise full
        assert not list(tmp_path.iterdir())

    def test_a_path_without_a_name(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.chdir(tmp_path)
        for path in (".", "/", ".."):
            with pytest.raises(UserError, match="Is a directory"):
                write_text(path, "")


def _write(path: Path, size: int, writer: str) -> None:
    with whole(path) as unfinished:
        if writer == "text":
            unfinished.write_bytes(bytes(size))
        elif writer == "safetensors":
            save_file({"weight": torch.zeros(size)}, unfinished)
        else:
            with unfinished.open("wb") as file:
                torch.save({"weight": torch.zeros(size)}, file)


def _name_while_written(folder: Path) -> str:
    with whole(folder / "x") as unfinished:
        unfinished.touch()
    (folder / "x").unlink()
    return unfinished.name


@pytest.fixture
def small_files() -> Iterator[int]:
    """The largest size of a file that this process may write."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, earlier[1]))
    try:
        yield 4096
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


class TestToml:
    DOCUMENT = {"text": "a 'b' \"c\" é\\n\nx\ty", "rate": 5e-05, "on": True, "part.one": {"list": [1, 2], "é": -3}}  # noqa: RUF012

    def test_is_read_back(self, tmp_path: Path) -> None:
        write_toml(tmp_path / "x.toml", self.DOCUMENT, "# about it\n")
        assert (tmp_path / "x.toml").read_text(encoding="utf-8").startswith("# about it\ntext = ")
        assert read_toml(tmp_path / "x.toml", "the file", "") == self.DOCUMENT

    @pytest.mark.parametrize("document", [{"a": "\x07"}, {"a": {"b": ["\x1b[0m"]}}, {"a\x00": 1}])
    def test_control_characters_are_refused(self, tmp_path: Path, document: dict[str, object]) -> None:
        with pytest.raises(UserError, match="control character"):
            write_toml(tmp_path / "x.toml", document)
        assert not list(tmp_path.iterdir())
