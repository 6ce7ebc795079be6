"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataset.errors import UserError


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffix, renamed to `path` when the block ends.

    Where the block raises (Ctrl-C included), the temporary file goes and what stood at `path` stays. The folder is made
    if it is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all.

    Raises:
        UserError: the file can't be written there.
    """
    try:
        with whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror})", "expected a file that can be made there") from None
