"""How an option is declared: a dataclass field gives its name, type and default, and `option` the rest."""

from __future__ import annotations

import functools
import math
import operator
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from heterolora.common.checks import LARGEST, Condition
from heterolora.common.errors import UserError, nearest
from options.actions import ALL_OPTIONS

NONE_WORDS = ("NA", "none", "None")  # older configuration files write "NA"

# What a resumed run may do with an option:
# fixed: it has the value of the run. This is the default, so that a new option cannot make a resumed run inexact.
# epoch_end: it may change where the checkpoint is not inside an epoch, because it says how an epoch is divided.
# global_batch: it may change if the product of all these options stays the same.
# free: it may change, because it does not change what is computed before the end of the run.
# start: it belongs to one start of the program, and the run's own value is not used.
Resume = Literal["fixed", "epoch_end", "global_batch", "free", "start"]
# Values of all options of a run, its `action`, whether its model is `adapted`, and the `entry` of its data set (None if
# it is own data) -> in which case an option has no effect, or None if it has one.
Idle = Callable[[Mapping[str, Any]], str | None]

# type of an option -> (types of the TOML value, description in error messages, placeholder in --help)
_TYPES: dict[Any, tuple[tuple[type, ...], str, str]] = {
    str: ((str,), "text", "NAME"),
    Path: ((str,), "a path", "PATH"),
    int: ((int,), "a whole number", "N"),
    float: ((int, float), "a number", "X"),
    int | float: ((int, float), "a number", "N|SHARE"),
    bool: ((bool,), "true or false", "true|false"),
    tuple[str, ...]: ((list, str), "texts", "TEXT"),
}
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class OptionInfo:
    """What `--help`, the command line and the TOML file need to know about an option."""

    name: str  # the key in a TOML file; the flag has `-` instead of `_`
    type: Any  # `str`, `Path`, `int`, `float`, `int | float` (a count or a share), `bool`, or `tuple[str, ...]`
    default: Any
    group: str  # the heading in `--help`
    help: str  # one line
    check: Condition | None = None
    choices: tuple[str, ...] = ()  # the valid values, if they can be listed
    words: tuple[str, ...] = ()  # valid values besides those of the type
    spellings: Mapping[str, str] = field(default_factory=dict)  # other spellings of choices, such as Lightning's
    refused: Mapping[str, str] = field(default_factory=dict)  # values that users may expect -> why they are no choices
    aliases: tuple[str, ...] = ()  # other flags, such as `--gpu`
    opposite: str = ""  # of a `bool`: the name of the option that sets it to false, such as `random_init`
    old_keys: tuple[str, ...] = ()  # older TOML keys that are still read
    actions: tuple[str, ...] = ()  # the actions that use the option; empty: all
    brief: str = ""  # what `--help` shows of an option that most runs need; --help-all shows all options
    from_checkpoint: bool = False  # it describes the model or its data, so that a checkpoint gives its default
    resume: Resume = "fixed"
    idle: Idle | None = None  # in which cases it has no effect, besides `actions`

    @property
    def flag(self) -> str:
        return flag_of(self.name)

    @property
    def in_brief(self) -> str:
        has_default = self.default is not None and self.type is not bool
        return f"{self.brief} ({self.default})" if has_default else self.brief

    @property
    def metavar(self) -> str:
        return "{" + ",".join(self.choices) + "}" if self.choices else "|".join((_TYPES[self.type][2], *self.words))

    @property
    def repeats(self) -> bool:
        """Whether the option may be given several times, with a text each time."""
        return bool(self.type == tuple[str, ...])

    @property
    def expected(self) -> str:
        return " or ".join((_TYPES[self.type][1], *self.words))

    def flag_for(self, value: Any) -> str:
        """The flag that gives this value."""
        return flag_of(self.opposite) if self.opposite and value is False else self.flag

    def is_default(self, value: Any) -> bool:
        return str(value) == str(self.default)  # 1 is a batch, and 1.0 is an epoch

    def used_by(self, action: str) -> bool:
        return not self.actions or action in self.actions

    def from_text(self, text: str) -> Any:
        """The value of a command-line argument. Raises UserError if it has the wrong type or is out of range."""
        if self._is_none(text) and (self.default is None or text == "NA"):
            return None
        return self.value_of(text)

    def value_of(self, text: str) -> Any:
        """The value of a command-line argument that cannot be left open. Raises UserError as `from_text` does."""
        if text in self.words:
            return text
        if not text and self.type in (str, Path):
            raise UserError(f"{self.flag} is empty", f"give {self.expected}, or leave it out")
        try:
            value = self._parse(text)
        except (ValueError, KeyError):
            raise UserError(f"{self.flag} {_shown(text)!r} can't be read", f"give {self.expected}") from None
        return self._checked(self.flag, value)

    def from_toml(self, key: str, value: Any) -> Any:
        """The value of a TOML key. Raises UserError if it has the wrong type or is out of range."""
        if isinstance(value, str) and self._is_none(value):
            return None
        if isinstance(value, str) and value in self.words:
            return value
        if self.choices and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)  # precision = 32
        accepted = _TYPES[self.type][0]
        if not isinstance(value, accepted) or (isinstance(value, bool) and self.type is not bool):
            raise UserError(f"key '{key}' is {value!r}", f"give {self.expected}")
        if self.repeats:
            return self.texts(value if isinstance(value, list) else [value])
        return self._checked(f"key '{key}':", value)

    def texts(self, values: Sequence[Any]) -> tuple[str, ...]:
        """The value of an option that repeats. Any text can be one."""
        if wrong := next((value for value in values if not isinstance(value, str)), None):
            raise UserError(f"{self.flag} is {_shown(wrong)!r}", f"give {self.expected}")
        return tuple(values)

    def _parse(self, text: str) -> Any:
        if self.type is bool:
            return _BOOLEANS[text.lower()]
        if self.type == int | float:
            return float(text) if any(mark in text for mark in ".eE") else int(text)
        return self.type(text)

    def _is_none(self, text: str) -> bool:
        return text in NONE_WORDS and text not in self.choices

    def _checked(self, name: str, value: Any) -> Any:
        if (expected := _storable(value)) is not None:
            raise UserError(f"{name} {_shown(value)!r} is out of range", f"give {expected}")
        value = self.spellings.get(value, value) if self.choices else value
        if value in self.refused:
            raise UserError(
                f"{name} {value!r} is not supported: {self.refused[value]}", nearest(value, self.choices, ALL_OPTIONS)
            )
        if self.choices and value not in self.choices:
            raise UserError(f"{name} {value!r} is not known", nearest(str(value), self.choices, ALL_OPTIONS))
        value = os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value
        value = self.type(value) if self.type in (float, Path) else value
        if self.check is not None and not self.check.valid(value):
            raise UserError(f"{name} {value} is out of range", f"give {self.check.expected}")
        return value


def _storable(value: Any) -> str | None:
    """None if the run can store the value in its files, otherwise what would be right."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a whole number below 2^63"
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, str | Path) and not _is_text(str(value)):
        return "text without control characters, and outside ASCII only in a UTF-8 locale such as LC_ALL=C.UTF-8"
    return None


def _is_text(text: str) -> bool:
    """Whether the text can be a file name on this machine and be written as UTF-8, without control characters."""
    try:
        os.fsencode(text)
        text.encode()  # bytes that are not text in the locale's encoding became surrogates, which UTF-8 refuses
    except UnicodeEncodeError:
        return False
    return not any(unicodedata.category(letter) == "Cc" for letter in text)


def _shown(value: Any) -> Any:
    """The value as it appears in a message: long text is shortened."""
    text = str(value)
    return value if len(text) <= 60 else text[:57] + "..."


def option(default: Any, help: str, check: Condition | None = None, **more: Any) -> Any:
    """A dataclass field that declares an option. `more` holds other attributes of `OptionInfo`."""
    return field(default=default, metadata={"help": help, "check": check, **more})


def group(options: type, heading: str, actions: tuple[str, ...] = ()) -> Any:
    """A dataclass field that holds a group of options. `actions` are those that use it; empty: all."""
    return field(default=options(), metadata={"group": options, "heading": heading, "actions": actions})


def options_of(options: type, heading: str, actions: tuple[str, ...] = ()) -> Iterator[OptionInfo]:
    """The options that a dataclass declares, and then those of its groups."""
    hints = get_type_hints(options)
    for declared in fields(options):
        about = declared.metadata
        if "group" in about:
            yield from options_of(about["group"], about["heading"], about["actions"])
        else:
            kind, choices, words = _type(hints[declared.name])
            more = {"actions": actions, "choices": choices, "words": words, **about}
            yield OptionInfo(declared.name, kind, declared.default, heading, **more)


def _type(hint: Any) -> tuple[Any, tuple[str, ...], tuple[str, ...]]:
    """(`OptionInfo.type`, `choices`, `words`): a Literal alone gives choices, and one beside a type gives words."""
    alternatives = (hint,) if get_origin(hint) in (None, Literal) else get_args(hint)
    words = tuple(word for each in alternatives if get_origin(each) is Literal for word in get_args(each))
    kinds = [kind for kind in alternatives if kind is not NoneType and get_origin(kind) is not Literal]
    return (functools.reduce(operator.or_, kinds), (), words) if kinds else (str, words, ())


def idle_with(name: str, *values: Any) -> Idle:
    """An option has no effect if the option `name` has one of these values."""
    return lambda run: _with(name, run[name]) if run[name] in values else None


def idle_without(name: str, *values: Any) -> Idle:
    """An option has an effect only if the option `name` has one of these values."""
    return lambda run: None if run[name] in values else _with(name, run[name])


def _with(name: str, value: Any) -> str:
    return f"with {flag_of(name)}" if value is True else f"with {flag_of(name)} {value}"


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
