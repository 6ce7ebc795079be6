"""Files are there whole or not at all."""

from pathlib import Path

import pytest

from dataset.files import whole


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "picture.png"
    with whole(path) as unfinished:
        unfinished.write_text("half")
        assert not path.exists()
        assert unfinished.suffix == ".png"  # some writers choose the format by it
    assert path.read_text() == "half"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("reason", [KeyboardInterrupt, OSError])
def test_what_stood_there_stays_when_writing_fails(tmp_path: Path, reason: type[BaseException]) -> None:
    path = tmp_path / "scores.toml"
    path.write_text("old")
    with pytest.raises(reason), whole(path) as unfinished:
        unfinished.write_text("half")
        raise reason
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
