"""The ranges of options. A value has the type of its option already, so that they name the range alone."""

from __future__ import annotations

import re
from decimal import Decimal

from heterolora.common.checks import Condition


def at_least(low: float) -> Condition:
    return Condition(lambda value: value >= low, f"at least {low:g}")


positive_or_unlimited = Condition(lambda value: value >= 1 or value == -1, "at least 1, or -1 for no limit")
seed_range = Condition(lambda value: 0 <= value < 2**32, f"0 to {2**32 - 1}")  # numpy's range
below_1 = Condition(lambda value: 0 <= value < 1, "a share in [0, 1)")
share = Condition(lambda value: 0 < value <= 1, "a share in (0, 1]")
count_or_share = Condition(
    lambda value: 0 < value <= 1 if isinstance(value, float) else value >= 1,
    "a count of at least 1, or a share in (0, 1] written with a point, such as 0.5 or 1.0",
)

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


def _is_size(text: str) -> bool:
    try:
        return bytes_of(text) > 0
    except ValueError:
        return False


byte_size = Condition(_is_size, "a size such as 4GiB or 500MB")
