"""Files that are written completely or not at all, and TOML documents as text."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from heterolora.errors import UserError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, with the same suffix, and renames it to `path` when the block ends.

    If the block raises (also on Ctrl-C), the temporary file is deleted and the file at `path` stays. Missing folders
    are created.
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
    """Yields a new folder beside `path` and renames it to `path` when the block ends; an existing folder is replaced.

    If the block raises, the new folder is deleted and the folder at `path` stays.
    """
    path = Path(path)
    unfinished, replaced = (path.with_name(f".{path.name}.{os.getpid()}.{what}") for what in ("tmp", "old"))
    for left in (unfinished, replaced):  # by a killed process that had the same id, as happens in containers
        shutil.rmtree(left, ignore_errors=True)
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
    """Write a UTF-8 file, completely or not at all. Raises UserError if it cannot be written."""
    try:
        with whole(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write '{path}' ({error.strerror})", "expected a file that can be made there") from None


def to_toml(document: Mapping[str, Any]) -> str:
    """The document as TOML text. The text is read back and compared, because the writer does not check its output.

    Raises:
        UserError: a name or text holds a control character, which the writer does not escape.
    """
    import toml

    _refuse_control_characters(document)
    encoder = toml.TomlEncoder()
    encoder.dump_funcs[str] = partial(json.dumps, ensure_ascii=False)  # the library's own escapes fail on \\x
    text = toml.dumps(document, encoder)
    if tomllib.loads(text) != document:
        raise ValueError("the TOML text does not hold the values of the document")
    return text


def write_toml(path: str | Path, document: Mapping[str, Any], head: str = "") -> None:
    """Write a TOML file, completely or not at all. `head` is comment lines at its top."""
    write_text(path, head + to_toml(document))


def _refuse_control_characters(value: Any) -> None:
    if isinstance(value, Mapping):
        _refuse_control_characters([*value.keys(), *value.values()])
    elif isinstance(value, list):
        for inner in value:
            _refuse_control_characters(inner)
    elif isinstance(value, str) and _CONTROL.search(value):
        raise UserError(f"{value!r} holds a control character", "expected a name without one")
