"""Files are there whole or not at all; TOML is read back as it was written."""

import os
from pathlib import Path

import pytest

from heterolora.errors import UserError
from heterolora.files import whole, whole_folder, write_text, write_toml
from heterolora.outside import read_toml


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

    @pytest.mark.parametrize("content", [b"seed = --1", b"a = 1\na = 2", b"a = [", b"\xff", None])
    def test_what_can_not_be_read(self, tmp_path: Path, content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "x.toml").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.toml.*; give a TOML file"):
            read_toml(tmp_path / "x.toml", "the file", "give a TOML file")
