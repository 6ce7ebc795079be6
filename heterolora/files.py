"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from heterolora.errors import UserError


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


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder beside `path`, renamed to `path` when the block ends; a folder that stood there is replaced.

    Where the block raises, the new folder goes and what stood at `path` stays.
    """
    path = Path(path)
    unfinished, replaced = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if path.is_dir():
            os.replace(path, replaced)
        os.replace(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if replaced.is_dir() and not path.is_dir():
            os.replace(replaced, path)
        shutil.rmtree(replaced, ignore_errors=True)


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
