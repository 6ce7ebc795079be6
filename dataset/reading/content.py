"""The content of a file of rows as text, and its columns that are read.

JSON can write half of a character, which no file in UTF-8 and no tokenizer takes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest

LARGEST_FILE = 2**30  # bytes of a csv file or JSON array, which are read at once
_SMALLER = "divide it into train-00000-of-00002 and so on, or write it as jsonl or parquet"


def empty(found: object) -> UserError:
    return UserError(f"{found} is empty", "give it at least one row")


def wanted_columns(path: Path, present: Sequence[str], spec: DatasetSpec) -> list[str]:
    """Returns the names of the columns to read."""
    wanted, counts = spec.read_columns, Counter(present)
    for column in wanted:
        if column not in counts:
            raise UserError(f"'{path}' has no column '{column}'", nearest(column, filter(str.isprintable, counts)))
        if counts[column] > 1:
            raise UserError(f"'{path}' has {counts[column]} columns named '{column}'", "keep one of them")
    return wanted


def utf8(path: Path) -> str:
    """Returns the text of a file, without a byte order mark."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise UserError(f"'{path}' has {size:,} bytes, more than the {LARGEST_FILE:,} allowed", _SMALLER)
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(f"line {line_of(content, error.start)} of '{path}'") from error


def line_of(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def not_utf8(where: str) -> UserError:
    return UserError(f"{where} is not UTF-8 text", "convert the file to UTF-8")


def check_characters(where: str, value: Any) -> None:
    """Raises UserError if a text in a JSON value holds one half of a surrogate pair without the other."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = f"{where} holds {error.object[error.start]!a}, which is half of a character"
        raise UserError(found, "write the whole character, or leave it out") from error
