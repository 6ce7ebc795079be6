"""How one option is declared: its default, its type, its range and its line of help, in one place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heterolora.errors import UserError, nearest

NONE_WORDS = ("NA", "none", "None")  # "NA" is how older configuration files say it

Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Kind:
    """A type of value: how it is read from the command line, and what a TOML file may hold for it."""

    parse: Callable[[str], Any]
    toml_types: tuple[type, ...]
    wanted: str


def _boolean(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]


def _amount(text: str) -> int | float:
    """`32` is a count, `0.5` (and `1.0`) a share."""
    return float(text) if any(mark in text for mark in ".eE") else int(text)


KINDS: dict[str, Kind] = {
    "text": Kind(str, (str,), "text"),
    "path": Kind(Path, (str,), "a path"),
    "integer": Kind(int, (int,), "a whole number"),
    "real": Kind(float, (int, float), "a number"),
    "amount": Kind(_amount, (int, float), "a number"),
    "boolean": Kind(_boolean, (bool,), "true or false"),
}


@dataclass(frozen=True)
class OptionInfo:
    """What `--help`, the command line and the TOML file need to know of an option.

    Attributes:
        kind: a key of `KINDS`.
        group: heading in `--help`.
        help: one line.
        choices: the valid values, if they can be listed.
        aliases: other flags, e.g. `--gpu`.
        old_keys: older TOML keys that are still read.
        actions: the actions that it has an effect on; empty: all.
        check: value → what would be right, or `None` if it is right.
        from_checkpoint: belongs to the model or its data, so that a checkpoint's value is the default.
    """

    kind: str
    group: str
    help: str
    choices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    old_keys: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    check: Check | None = None
    from_checkpoint: bool = False

    def used_by(self, action: str) -> bool:
        return not self.actions or action in self.actions


def option(default: Any, kind: str, group: str, help: str, **more: Any) -> Any:
    """A dataclass field that declares an option; see `OptionInfo` for `more`."""
    return field(default=default, metadata={"option": OptionInfo(kind=kind, group=group, help=help, **more)})


def at_least(low: float) -> Check:
    return lambda value: None if value >= low else f"at least {low:g}"


def above(low: float) -> Check:
    return lambda value: None if value > low else f"a number above {low:g}"


def positive_or_unlimited(value: int) -> str | None:
    return None if value >= 1 or value == -1 else "at least 1, or -1 for no limit"


def share(value: float) -> str | None:
    return None if 0.0 < value <= 1.0 else "a share in (0, 1]"


def count_or_share(value: int | float) -> str | None:
    """int: at least 1; float: in (0, 1]."""
    fits = 0.0 < value <= 1.0 if isinstance(value, float) else value >= 1
    return None if fits else "a count of at least 1, or a share in (0, 1] written with a point, such as 0.5 or 1.0"


def _validated(name: str, info: OptionInfo, value: Any) -> Any:
    if info.choices and value not in info.choices:
        raise UserError(f"{name} {value!r} is not known", nearest(str(value), info.choices))
    if info.check is not None and (expected := info.check(value)) is not None:
        raise UserError(f"{name} {value} is out of range", f"give {expected}")
    return value


def _says_none(info: OptionInfo, value: Any) -> bool:
    return isinstance(value, str) and value in NONE_WORDS and value not in info.choices


def from_text(flag: str, info: OptionInfo, text: str) -> Any:
    """A value of the command line, typed and checked."""
    if _says_none(info, text):
        return None
    kind = KINDS[info.kind]
    try:
        value = kind.parse(text)
    except (ValueError, KeyError):
        raise UserError(f"{flag} {text!r} can't be read", f"give {kind.wanted}") from None
    return _validated(flag, info, value)


def from_toml(key: str, info: OptionInfo, value: Any) -> Any:
    """A value of a TOML file, checked; it must have the right TOML type already."""
    if _says_none(info, value):
        return None
    kind = KINDS[info.kind]
    if info.choices and isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # precision = 32
    is_boolean_for_number = isinstance(value, bool) and bool not in kind.toml_types
    if is_boolean_for_number or not isinstance(value, kind.toml_types):
        raise UserError(f"key '{key}' is {value!r}", f"give {kind.wanted}")
    if info.kind in ("path", "real"):
        value = kind.parse(value)
    return _validated(f"key '{key}':", info, value)
