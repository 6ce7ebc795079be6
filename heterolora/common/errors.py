"""Mistakes of the user, as one-line messages. The lowest module of the project: it imports no other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_MOST_LISTED = 10  # names
_LONGEST_LINE, _LONGEST_VALUE = 4000, 300  # characters


class _ExplainedError(Exception):
    """What was found, and what would be right, each on one line."""

    def __init__(self, found: str, expected: str) -> None:
        self.found = _one_line(found)
        self.expected = _one_line(expected)
        super().__init__(self.found, self.expected)  # what a pickled exception is made of again

    def __str__(self) -> str:
        return f"{self.found}; {self.expected}"


class UserError(_ExplainedError):
    """A mistake in the user's input. `main` prints `error: <found>; <expected>` and exits with code 2.

    Args:
        found: what was found, e.g. "--model 'opt_lra' is not known".
        expected: what would be right, e.g. "did you mean 'opt_lora'?".
    """


def shown(value: object) -> str:
    """`repr`, for values of any size and depth: it is short, and never raises."""
    try:
        text = repr(value)
    except Exception:  # of a very long number or of deep nesting
        return f"a {type(value).__name__} that is too large to show"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


class NotFiniteError(UserError):
    """A score or a metric is NaN or infinite."""


class DivergenceError(_ExplainedError):
    """Training whose numbers are no longer finite. `main` prints it as it prints a UserError, and exits with code 1.

    Args:
        found: what became NaN or infinite, and when.
        expected: what may prevent it.
    """


def nearest(name: str, valid: Iterable[str], listed_by: str = "") -> str:
    """The advice for an unknown name: the nearest valid name if there is one, and all valid names or, of many, the
    nearest, and the command that lists all, `listed_by`.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    close = close or [each for each in names if name and (each.startswith(name) or name.startswith(f"{each}-"))]
    shown = names if len(names) <= _MOST_LISTED else sorted(_closest(name, names))
    left = len(names) - len(shown)
    more = f" and {left} other{'s' * (left > 1)}{f'; {listed_by} lists all' * bool(listed_by)}" if left else ""
    listing = ", ".join(shown) + more if names else "none"
    return f"did you mean '{close[0]}'? (valid: {listing})" if close else f"valid: {listing}"


def _closest(name: str, names: list[str]) -> list[str]:
    return difflib.get_close_matches(name, names, n=_MOST_LISTED, cutoff=0.0)


def _one_line(text: str) -> str:
    """The text without control characters, which names in a file may hold, and cut if it is very long."""
    text = text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
