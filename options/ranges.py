"""The ranges of options: checks of a value that say what would be right."""

from __future__ import annotations

import re
from decimal import Decimal

from options.declare import Check


def at_least(low: float) -> Check:
    return lambda value: None if value >= low else f"at least {low:g}"


def between(low: int, high: int) -> Check:
    return lambda value: None if low <= value <= high else f"{low} to {high}"


def above(low: float) -> Check:
    return lambda value: None if value > low else f"a number above {low:g}"


def positive_or_unlimited(value: int) -> str | None:
    return None if value >= 1 or value == -1 else "at least 1, or -1 for no limit"


seed_range = between(0, 2**32 - 1)  # numpy's range


def share(value: float) -> str | None:
    return None if 0.0 < value <= 1.0 else "a share in (0, 1]"


def count_or_share(value: int | float) -> str | None:
    """int: at least 1; float: in (0, 1]."""
    fits = 0.0 < value <= 1.0 if isinstance(value, float) else value >= 1
    return None if fits else "a count of at least 1, or a share in (0, 1] written with a point, such as 0.5 or 1.0"


_BYTES = {"": 1, "B": 1, **{f"{unit}B": 1000**n for n, unit in enumerate("KMGT", 1)}}


_BYTES |= {f"{unit}iB": 1024**n for n, unit in enumerate("KMGT", 1)}


_PLAIN = 1_000_000  # a smaller number without a unit is more likely meant in GiB than in bytes


def bytes_of(text: str) -> int:
    """The bytes of a size such as 4GiB, 1.5 GB or 1000000. Raises ValueError if it is none, or less than a byte, or if
    the unit of a small number is missing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip(), re.ASCII)
    units = {unit.lower(): count for unit, count in _BYTES.items()}
    if found is None or found[2].lower() not in units:
        raise ValueError(text)
    size = int(Decimal(found[1]) * units[found[2].lower()])
    if not (1 if found[2] else _PLAIN) <= size < 2**63:
        raise ValueError(text)
    return size


def byte_size(text: str) -> str | None:
    """The check of an option whose value is a size."""
    try:
        bytes_of(text)
    except ValueError:
        return "a size such as 4GiB or 500MB"
    return None
