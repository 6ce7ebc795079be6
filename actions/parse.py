"""Command line and `--config` file → `Options`. The command line wins over the file, the file over the default."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import toml

from actions.fields import from_text, from_toml
from actions.options import ACTIONS, Options, declared, defaults, flag_of
from heterolora.errors import UserError, nearest

EXAMPLES = """\
examples:
  python -m main train                                  the built-in toy world, in a minute or two
  python -m main train --model opt_lora --load facebook/opt-350m --pretrained --dataset rte \\
      --lora-config configs/lora/lora_networkwise.toml --max-epochs 20 --learning-rate 1e-4
  python -m main test --load runs/NAME/checkpoints/best.ckpt
  python -m main train --config runs/NAME/config.toml   the same run again
  python -m main train --resume-training --load runs/NAME/checkpoints/last.ckpt
"""


@dataclass(frozen=True)
class Command:
    """What was asked for.

    Attributes:
        action: a key of `ACTIONS`.
        options: the resolved options.
        given: names of the options that the command line or the file sets; a checkpoint's values fill in the others.
        notes: lines worth telling the user.
    """

    action: str
    options: Options
    given: frozenset[str]
    notes: tuple[str, ...]


class _Parser(argparse.ArgumentParser):
    """An argument parser whose mistakes are `UserError`s, like all others."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help")


def parse(arguments: Sequence[str]) -> Command:
    """Raises UserError for anything that a user can get wrong here, and SystemExit for `--help`."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise UserError(f"action '{arguments[0]}' is not known", nearest(arguments[0], ACTIONS))
    parser = _build()
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise _unknown_argument(unknown[0])
    if namespace.action is None:
        raise UserError("no action is given", f"give one of {', '.join(ACTIONS)}, or --help")
    on_command_line = _command_line_values(namespace)
    config = on_command_line.get("config")
    in_file, notes = (_file_values(config), []) if config else ({}, [])
    given = {**in_file, **on_command_line}
    for name in on_command_line:
        if not declared()[name].used_by(namespace.action):
            notes.append(f"{flag_of(name)} has no effect on {namespace.action}")
    # "NA" for an option that must have a value means its default.
    resolved = {k: v for k, v in {**defaults(), **given}.items() if v is not None}
    return Command(namespace.action, Options(**resolved), frozenset(given), tuple(notes))


def _build() -> _Parser:
    parser = _Parser(
        prog="python -m main",
        description="HeteroLoRA: LoRA fine-tuning that decides by itself where low-rank adapters are worth their "
        "parameters.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="{" + ",".join(ACTIONS) + "}", title="actions")
    for action, about in ACTIONS.items():
        sub = actions.add_parser(
            action,
            help=about.summary,
            description=about.summary[0].upper() + about.summary[1:] + ".",
            epilog="Every option is also a key of the --config file, with _ for -.",
            allow_abbrev=False,
        )
        sub.add_argument("positional", nargs="*", metavar="MODEL DATASET", help="the same as --model and --dataset")
        _add_options(sub, action)
    return parser


def _add_options(parser: argparse.ArgumentParser, action: str) -> None:
    groups: dict[str, Any] = {}
    for name, info in declared().items():
        if info.group not in groups:
            groups[info.group] = parser.add_argument_group(info.group)
        flag = info.kind == "boolean"
        groups[info.group].add_argument(
            flag_of(name),
            *info.aliases,
            dest=name,
            default=argparse.SUPPRESS,
            nargs="?" if flag else None,
            const="true" if flag else None,
            metavar="true|false"
            if flag
            else "{" + ",".join(info.choices) + "}"
            if info.choices
            else _metavar(info.kind),
            help=_help(name, info.help) if info.used_by(action) else argparse.SUPPRESS,
        )


def _metavar(kind: str) -> str:
    return {"integer": "N", "real": "X", "amount": "N|SHARE", "path": "PATH"}.get(kind, "NAME")


def _help(name: str, text: str) -> str:
    default = defaults()[name]
    shown = "" if default is None or default is False else f" (default: {default})"
    return (text + shown).replace("%", "%%")


def _command_line_values(namespace: argparse.Namespace) -> dict[str, Any]:
    values = {k: v for k, v in vars(namespace).items() if k in declared()}
    typed = {name: from_text(flag_of(name), declared()[name], text) for name, text in values.items()}
    if len(namespace.positional) > 2:
        raise UserError(f"unexpected argument '{namespace.positional[2]}'", "give at most a model and a data set")
    for name, value in zip(("model", "dataset"), namespace.positional, strict=False):
        if typed.get(name, value) != value:
            raise UserError(f"{flag_of(name)} is given twice: '{value}' and '{typed[name]}'", "give it once")
        typed[name] = value
    return typed


def _unknown_argument(argument: str) -> UserError:
    if not argument.startswith("-"):
        return UserError(
            f"unexpected argument '{argument}'", "give a model and a data set after the action, or options"
        )
    flags = [flag for name, info in declared().items() for flag in (flag_of(name), *info.aliases)]
    name = argument.split("=")[0]
    close = [flag for flag in flags if _initials(flag) == name.strip("-")]  # --lr is --learning-rate elsewhere
    close = close or difflib.get_close_matches(name, flags, n=1)
    return UserError(
        f"option '{argument}' is not known",
        f"did you mean '{close[0]}'?" if close else "see python -m main ACTION --help",
    )


def _initials(flag: str) -> str:
    return "".join(word[0] for word in flag.strip("-").split("-"))


def _file_values(path: Path) -> dict[str, Any]:
    known = declared()
    old = {old_key: name for name, info in known.items() for old_key in info.old_keys}
    values: dict[str, Any] = {}
    for key, value in _read_toml(path).items():
        name = old.get(key, key.replace("-", "_"))
        if name not in known or name == "config":
            raise UserError(f"key '{key}' in {path} is not an option", nearest(key, known))
        if name in values:
            raise UserError(f"key '{key}' in {path} sets {name} a second time", "give it once")
        values[name] = from_toml(key, known[name], value)
    return values


def _read_toml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"--config {path} is not a file", "give a TOML file of options")
    try:
        return toml.loads(path.read_text(encoding="utf-8"))
    except (toml.TomlDecodeError, UnicodeDecodeError, IndexError) as reason:
        raise UserError(f"--config {path} is not TOML: {reason}", "give lines such as learning_rate = 1e-4") from None
