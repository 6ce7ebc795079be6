"""Checks of the names and values in a file. Configurations and scores documents use them. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from heterolora.common.errors import UserError, nearest, shown

LARGEST = 2**63 - 1  # the largest whole number of a tensor, and of the TOML standard


@dataclass(frozen=True)
class Field:
    """Which values a key may have, and how a message describes them."""

    valid: Callable[[Any], bool]
    expected: str
    required: bool = True

    def check(self, where: str, key: str, value: Any) -> Any:
        """Returns `value`. Raises UserError if it is not valid."""
        if not self.valid(value):
            raise UserError(f"{where}: {key} is {shown(value)}", f"expected {self.expected}")
        return value


def whole_number(least: int, most: int = LARGEST) -> Field:
    return Field(
        lambda value: isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most,
        f"a whole number, {least} or more" + (f", at most {most:,}" if most < LARGEST else ""),
    )


def number(valid: Callable[[float], bool], expected: str) -> Field:
    """A finite number for which `valid` is true."""

    def check(value: Any) -> bool:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max and valid(value)

    return Field(check, expected)


TEXT = Field(lambda value: isinstance(value, str), "a text")
TRUTH = Field(lambda value: isinstance(value, bool), "true or false")
ABOVE_0 = number(lambda value: value > 0, "a number above 0")
PROBABILITY = number(lambda value: 0 <= value < 1, "a number in [0, 1)")


def check_known(where: str, name: str, valid: Iterable[str], also: str = "") -> None:
    """Raise UserError if `name` is not one of `valid`; the message gives the nearest name, and `also`.

    A damaged checkpoint may hold a name that is no text.
    """
    if name not in (names := tuple(valid)):
        raise UserError(f"{where}: '{name}' is not known", nearest(str(name), names) + also)


def check_keys(where: str, keys: Mapping[str, Field], table: Any, expected: str, also: str = "") -> Mapping[str, Any]:
    """Returns `table`. Raises UserError if it is no table, a key is unknown or missing, or a value is not valid."""
    if not isinstance(table, Mapping):
        raise UserError(f"{where} is {shown(table)}", expected)
    for key, value in table.items():
        check_known(where, key, keys, also)
        keys[key].check(where, key, value)
    missing = [key for key, form in keys.items() if form.required and key not in table]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing", expected)
    return table
