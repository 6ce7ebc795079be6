"""Which values are valid: those of options, arguments, configurations and documents. Imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypeVar

from heterolora.common.errors import UserError, nearest, shown

_T = TypeVar("_T")
LARGEST = 2**63 - 1  # the largest whole number of a tensor, and of the TOML standard


@dataclass(frozen=True)
class Condition:
    """Which values are valid, and how a message describes them."""

    valid: Callable[[Any], bool]
    expected: str

    def check(self, where: str, key: str, value: Any) -> Any:
        """`value` itself. Raises UserError if it is not valid."""
        if not self.valid(value):
            raise UserError(f"{where}: {key} is {shown(value)}", f"expected {self.expected}")
        return value


def whole_number(least: int, most: int = LARGEST) -> Condition:
    return Condition(
        lambda value: isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most,
        f"a whole number, {least} or more" + (f", at most {most:,}" if most < LARGEST else ""),
    )


def number(valid: Callable[[float], bool], expected: str) -> Condition:
    """A finite number for which `valid` is true."""

    def check(value: Any) -> bool:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max and valid(value)

    return Condition(check, expected)


TEXT = Condition(lambda value: isinstance(value, str), "a text")
TRUTH = Condition(lambda value: isinstance(value, bool), "true or false")
ABOVE_0 = number(lambda value: value > 0, "a number above 0")
RATE = number(lambda value: 0 < value <= 1e6, "a number above 0, at most 1e6")  # float32 ends at 3e38
PROBABILITY = number(lambda value: 0 <= value < 1, "a number in [0, 1)")
NAMES = Condition(
    lambda value: (
        isinstance(value, str) or (isinstance(value, Sequence | Set) and all(isinstance(name, str) for name in value))
    ),
    "a text, or a list of texts",
)
LIST_OF_NAMES = Condition(lambda value: not isinstance(value, str) and NAMES.valid(value), "a list of texts")


def instance(kind: type, expected: str) -> Condition:
    return Condition(lambda value: isinstance(value, kind), expected)


def check_known(where: str, name: str, valid: Iterable[str], also: str = "", listed_by: str = "") -> None:
    """Raise UserError if `name` is not one of `valid`; the message gives the nearest name, and `also`. If the names are
    many, it names the command that lists all, `listed_by`.

    A damaged checkpoint may hold a name that is no text.
    """
    if name not in (names := tuple(valid)):
        raise UserError(f"{where}: '{name}' is not known", nearest(str(name), names, listed_by) + also)


def check_keys(
    where: str, keys: Mapping[str, Condition], table: Any, expected: str, also: str = "", optional: Collection[str] = ()
) -> Mapping[str, Any]:
    """`table` itself. Raises UserError if it is no table, a key is unknown, one that is not `optional` is missing, or a
    value is not valid.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{where} is {shown(table)}", expected)
    for key, value in table.items():
        check_known(where, key, keys, also)
        keys[key].check(where, key, value)
    missing = [key for key in keys if key not in table and key not in optional]
    if missing:
        raise UserError(f"{where}: {', '.join(missing)} missing", expected)
    return table


def present(value: _T | None) -> _T:
    """Return a value that is not None, where a type allows it to be."""
    assert value is not None
    return value
