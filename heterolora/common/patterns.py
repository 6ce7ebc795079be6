"""Regular expressions from outside: they match as `re` does, but cannot run for long. Imports nothing heavy.

The `re` module has no time limit, and needs exponential time for patterns such as `(a+)+$`. The `regex` package has a
limit and the same syntax, with a few extensions. A pattern that uses an extension is refused.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from heterolora.common.errors import UserError, shown

LONGEST = 100_000  # characters of a pattern
SECONDS = 0.5  # of processor time for one text; a path of a module takes microseconds
_EXTENSION = re.compile(
    r"\{[^}]*[a-z]|\[:", re.IGNORECASE
)  # both modules accept it, and only `regex` gives it a meaning


def valid(pattern: Any) -> bool:
    """Whether it is a regular expression that `match` accepts."""
    try:
        return isinstance(pattern, str) and _compiled(pattern) is not None
    except UserError:
        return False


def match(pattern: str, text: str, whole: bool = False) -> Any:
    """`re.match`, or `re.fullmatch` if `whole`. Raises UserError if the pattern is invalid or takes too long."""
    found = _compiled(pattern)
    try:
        return (found.fullmatch if whole else found.match)(text, timeout=SECONDS)
    except (TimeoutError, MemoryError):
        raise UserError(
            f"the regular expression {shown(pattern)} takes too long on '{text}'",
            "write it without nested repetition",
        ) from None


def names_module(wanted: str | Sequence[str], path: str) -> bool:
    """Whether `wanted` is a regular expression of the whole path of a module, or a list with it or an end of it."""
    if isinstance(wanted, str):
        return match(wanted, path, whole=True) is not None
    return any(path == name or path.endswith(f".{name}") for name in wanted)


@functools.lru_cache(maxsize=10_000)
def _compiled(pattern: str) -> Any:
    import regex

    expected = "expected a regular expression, as Python's re module reads it"
    if len(pattern) > LONGEST or _EXTENSION.search(pattern):
        raise UserError(f"{shown(pattern)} is no regular expression for names of modules", expected)
    try:
        re.compile(pattern)
        return regex.compile(pattern)
    except (re.error, regex.error, RecursionError, OverflowError) as error:
        reason = str(error) or type(error).__name__
        raise UserError(f"{shown(pattern)} is no regular expression ({reason})", expected) from None
