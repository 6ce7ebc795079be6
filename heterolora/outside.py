"""Files from outside: every failure to read one becomes a `UserError` of one line that names the file and the remedy.

Libraries raise many exceptions for damaged files, and their documentation does not list all of them. So `reading`
converts any exception, and a caller states in `expected` what would be right.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heterolora.errors import UserError

LARGEST_DOCUMENT = 64 * 2**20  # bytes of a text document, such as a configuration or a history


@contextmanager
def reading(what: str, path: str | Path, expected: str) -> Iterator[None]:
    """Converts any exception of the block, except `UserError`, to a UserError about the file `path`.

    Args:
        what: the kind of file, such as "the tokenizer".
        expected: what would be right.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {what} '{path}' ({error.strerror or _first_line(error)})", expected) from error
    except Exception as error:
        raise UserError(f"{what} '{path}' is damaged or of another kind ({_first_line(error)})", expected) from error


def read_text(path: str | Path, what: str, expected: str, largest: int = LARGEST_DOCUMENT) -> str:
    """Returns a UTF-8 text. Raises UserError if it cannot be read, or has more than `largest` bytes."""
    with reading(what, path, expected):
        size = Path(path).stat().st_size
        if size > largest:
            raise UserError(f"{what} '{path}' has {size:,} bytes, more than the {largest:,} allowed", expected)
        return Path(path).read_text(encoding="utf-8")


def read_toml(path: str | Path, what: str, expected: str) -> dict[str, Any]:
    """Returns a TOML document. Raises UserError if it cannot be read or is not valid TOML."""
    return _document(path, what, expected, tomllib.loads, "TOML")


def read_json(path: str | Path, what: str, expected: str) -> dict[str, Any]:
    """Returns a JSON object. Raises UserError if it cannot be read, is not valid JSON or is not an object."""
    return _document(path, what, expected, json.loads, "JSON")


def _document(path: str | Path, what: str, expected: str, parse: Callable[[str], Any], form: str) -> dict[str, Any]:
    text = read_text(path, what, expected)
    try:
        document = parse(text)
    except (ValueError, RecursionError) as error:  # RecursionError: the document is nested too deeply
        raise UserError(f"{what} '{path}' is not valid {form} ({_first_line(error)})", expected) from error
    if not isinstance(document, dict):
        raise UserError(f"{what} '{path}' holds a {type(document).__name__}, not an object", expected)
    return document


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
