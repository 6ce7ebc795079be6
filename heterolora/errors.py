"""Mistakes of the user, as one-line messages. The lowest module of the project: it imports no other."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in the user's input. `main` prints `error: <found>; <expected>` and exits with code 2.

    Args:
        found: what was found, e.g. "--model 'opt_lra' is not known".
        expected: what would be right, e.g. "did you mean 'opt_lora'?".
    """

    def __init__(self, found: str, expected: str) -> None:
        super().__init__(f"{found}; {expected}")
        self.found = found
        self.expected = expected


def nearest(name: str, valid: Iterable[str]) -> str:
    """The advice for an unknown name: the nearest valid name if there is one, and all valid names."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    listing = ", ".join(names) if names else "none"
    return f"did you mean '{close[0]}'? (valid: {listing})" if close else f"valid: {listing}"
