"""Files from outside: every failure to read one becomes a `UserError` of one line that names the file and the remedy.

Libraries raise many exceptions for damaged files, and their documentation does not list all of them. So `reading`
converts any exception, and a caller states in `expected` what would be right.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heterolora.common.errors import UserError

LARGEST_DOCUMENT = 64 * 2**20  # bytes of a text document, such as a configuration or a history

# A number of 5,000 digits or a key of 32 parts, such as `a.b.c`. `tomllib` needs gigabytes for larger ones.
_COSTLY = re.compile(
    r"""(?<![0-9a-f_])[0-9a-f_]{5000}|(?:^|[\[{,])[ \t]*+(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){32}""",
    re.ASCII | re.IGNORECASE,
)


@contextmanager
def reading(what: str, path: str | Path, expected: str) -> Iterator[None]:
    """Convert any exception of the block, except `UserError`, to a UserError about the file or folder `path`.

    Raises UserError before the block if `path` is a pipe or a device, because a reader could wait without end.

    Args:
        what: the kind of file, such as "the tokenizer".
        expected: what would be right.
    """
    try:
        odd = _not_regular(Path(path))
        if odd is not None:
            raise UserError(f"{what} '{odd}' is not a regular file", expected)
        yield
    except UserError:
        raise
    except OSError as error:
        found = f"cannot read {what} '{path}' ({error.strerror or first_sentence(error)})"
        raise UserError(found, expected) from error
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of a library in Rust
            raise
        found = f"{what} '{path}' is damaged or of another kind ({first_sentence(error)})"
        raise UserError(found, expected) from error


def _not_regular(path: Path) -> Path | None:
    """The path, if it is neither a file nor a folder, or a pipe in this folder. None if there is no such thing."""
    if path.is_dir():
        return next((entry for entry in path.iterdir() if entry.is_fifo()), None)
    return path if path.exists() and not path.is_file() else None


def read_text(path: str | Path, what: str, expected: str, largest: int = LARGEST_DOCUMENT) -> str:
    """The UTF-8 text of a file. Raises UserError if it cannot be read, or has more than `largest` bytes."""
    with reading(what, path, expected):
        with Path(path).open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise UserError(f"{what} '{path}' has more than the {largest:,} bytes that are allowed", expected)
        try:
            return content.decode("utf-8-sig")  # editors on Windows write a byte order mark
        except UnicodeDecodeError as error:
            raise UserError(f"{what} '{path}' is not UTF-8 text (byte {error.start})", expected) from error


def read_toml(path: str | Path, what: str, expected: str) -> dict[str, Any]:
    """A TOML document. Raises UserError if it cannot be read or is not valid TOML."""
    return _document(path, what, expected, _parse_toml, "TOML")


def read_json(path: str | Path, what: str, expected: str, largest: int = LARGEST_DOCUMENT) -> dict[str, Any]:
    """A JSON object. Raises UserError if it cannot be read, is not valid JSON or is not an object."""
    return _document(path, what, expected, json.loads, "JSON", largest)


def _parse_toml(text: str) -> Any:
    suspects = (line for line in text.split("\n") if line.count(".") >= 32 or len(line) >= 5000)
    if any(map(_COSTLY.search, suspects)):
        raise ValueError("a key of too many parts, or a number of too many digits")
    return tomllib.loads(text)


def _document(
    path: str | Path, what: str, expected: str, parse: Callable[[str], Any], form: str, largest: int = LARGEST_DOCUMENT
) -> dict[str, Any]:
    text = read_text(path, what, expected, largest)
    try:
        document = parse(text)
    except (ValueError, RecursionError) as error:  # RecursionError: the document is nested too deeply
        raise UserError(f"{what} '{path}' is not valid {form} ({first_sentence(error)})", expected) from error
    if not isinstance(document, dict):
        raise UserError(f"{what} '{path}' holds a {type(document).__name__}, not an object", expected)
    return document


def first_sentence(error: BaseException) -> str:
    """The reason. The next sentences of libraries advise what is not right here, such as files that run code."""
    text = str(error).strip() or type(error).__name__
    return re.split(r"\n|\. ", text, maxsplit=1)[0].rstrip(".")[:200]
