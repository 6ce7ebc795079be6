"""The content of a file as text.

JSON can write half of a character, which no file in UTF-8 and no tokenizer takes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from heterolora.common.errors import UserError

_LARGEST_FILE = 2**30  # bytes of a text or JSON array, which are read at once
_LARGEST_LINE = 64 * 2**20  # bytes
_SMALLER = "divide it into train-00000-of-00002 and so on, or write it as jsonl or parquet"


def empty(found: object) -> UserError:
    return UserError(f"{found} is empty", "give it at least one row")


def utf8(path: Path) -> str:
    """Returns the text of a file, without a byte order mark."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise UserError(f"'{path}' has {size:,} bytes, more than the {_LARGEST_FILE:,} allowed", _SMALLER)
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, content.count(b"\n", 0, error.start) + 1) from error


def utf8_lines(path: Path, each: str) -> Iterator[tuple[int, str]]:
    """Yields the number from 1 and the text of each line, without a byte order mark. `each` says what a line is."""
    number = 0
    with path.open("rb") as file:
        while line := file.readline(_LARGEST_LINE + 1):
            number += 1
            if len(line) > _LARGEST_LINE:
                raise UserError(f"line {number} of '{path}' has more than {_LARGEST_LINE:,} bytes", each)
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, number) from error


def _not_utf8(path: Path, line: int) -> UserError:
    return UserError(f"line {line} of '{path}' is not UTF-8 text", "convert the file to UTF-8")


def check_characters(where: str, value: Any) -> None:
    """Raises UserError if a text in a JSON value holds one half of a surrogate pair without the other."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = f"{where} holds {error.object[error.start]!a}, which is half of a character"
        raise UserError(found, "write the whole character, or leave it out") from error
