"""Command line and `--config` file -> `Options`. The command line takes precedence over the file."""

from __future__ import annotations

import argparse
import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

from actions.options import ACTIONS, Options, changed, declared
from dataset.option import flag_of
from dataset.roles import joined_names
from dataset.settings import OwnDataOptions
from heterolora.errors import UserError, nearest
from heterolora.outside import read_toml

EXAMPLES = """\
examples:
  python -m main train                                  train on built-in toy data, in a minute or two
  python -m main train --model opt_lora --load facebook/opt-350m --pretrained --dataset rte \\
      --lora-config configs/lora/lora_networkwise.toml --max-epochs 20 --learning-rate 1e-4
  python -m main test --load runs/NAME/checkpoints/best.ckpt
  python -m main train --config runs/NAME/config.toml   repeat a run
  python -m main train --resume-training --load runs/NAME/checkpoints/last.ckpt
"""


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    action: str  # a key of `ACTIONS`
    options: Options
    given: frozenset[str]  # options that the command line or the file sets; a checkpoint gives values for the others
    notes: tuple[str, ...] = ()  # lines to print
    on_command_line: frozenset[str] = frozenset()  # options that the command line sets


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help")


def parse(arguments: Sequence[str]) -> Command:
    """Parse the arguments of `python -m main`. Raises UserError for a mistake, and SystemExit for `--help`."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise UserError(f"action '{arguments[0]}' is not known", nearest(arguments[0], ACTIONS))
    namespace, unknown = _build().parse_known_args(arguments)
    if unknown:
        raise _unknown_argument(unknown[0])
    if namespace.action is None:
        raise UserError("no action is given", f"give one of {', '.join(ACTIONS)}, or --help")
    on_command_line = _command_line_values(namespace)
    config = on_command_line.get("config")
    given = {**(_file_values(config) if config else {}), **on_command_line}
    # "NA" for an option that must have a value means its default.
    options = changed(Options(), {name: value for name, value in given.items() if value is not None})
    return Command(namespace.action, options, frozenset(given), on_command_line=frozenset(on_command_line))


def _build() -> _Parser:
    parser = _Parser(
        prog="python -m main",
        description="HeteroLoRA: LoRA fine-tuning that chooses where to put low-rank adapters.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="{" + ",".join(ACTIONS) + "}", title="actions")
    for action, summary in ACTIONS.items():
        sub = actions.add_parser(
            action,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog="Every option is also a key of the --config file, with _ instead of -.",
            allow_abbrev=False,
        )
        sub.add_argument("positional", nargs="*", metavar="MODEL DATASET", help="the same as --model and --dataset")
        _add_options(sub, action)
    return parser


def _add_options(parser: argparse.ArgumentParser, action: str) -> None:
    for heading, infos in itertools.groupby(declared().values(), lambda info: info.group):
        section = parser.add_argument_group(heading)
        for info in infos:
            shown = "" if info.default is None or info.default is False else f" (default: {info.default})"
            section.add_argument(
                info.flag,
                *info.aliases,
                dest=info.name,
                default=argparse.SUPPRESS,
                nargs="?" if info.type is bool else None,
                const="true" if info.type is bool else None,
                metavar=info.metavar,
                help=(info.help + shown).replace("%", "%%") if info.used_by(action) else argparse.SUPPRESS,
            )


def _command_line_values(namespace: argparse.Namespace) -> dict[str, Any]:
    known = declared()
    typed = {name: known[name].from_text(text) for name, text in vars(namespace).items() if name in known}
    if len(namespace.positional) > 2:
        raise UserError(f"unexpected argument '{namespace.positional[2]}'", "give at most a model and a data set")
    for name, value in zip(("model", "dataset"), namespace.positional, strict=False):
        value = known[name].value_of(value)
        if typed.get(name, value) != value:
            raise UserError(f"{flag_of(name)} is given twice: '{value}' and '{typed[name]}'", "give it once")
        typed[name] = value
    return typed


def _unknown_argument(argument: str) -> UserError:
    if not argument.startswith("-"):
        return UserError(
            f"unexpected argument '{argument}'", "give a model and a data set after the action, or options"
        )
    flags = [flag for info in declared().values() for flag in (info.flag, *info.aliases)]
    name = argument.split("=")[0]
    initials = {flag: "".join(word[0] for word in flag.strip("-").split("-")) for flag in flags}
    close = [flag for flag in flags if initials[flag] == name.strip("-")]  # --lr, as other programs call it
    close = close or difflib.get_close_matches(name, flags, n=1)
    return UserError(
        f"option '{argument}' is not known",
        f"did you mean '{close[0]}'?" if close else "see python -m main ACTION --help",
    )


def _file_values(path: Path) -> dict[str, Any]:
    known = declared()
    old = {old_key: name for name, info in known.items() for old_key in info.old_keys}
    values: dict[str, Any] = {}
    document = read_toml(path, "the options file", "give --config a TOML file of lines such as learning_rate = 1e-4")
    document.pop("action", None)  # written for the reader: another action may run with the same options
    for key, value in _with_flat_data_set(document, path).items():
        name = old.get(key, key.replace("-", "_"))
        if name not in known or name == "config":
            raise UserError(f"key '{key}' in {path} is not an option", nearest(key, known))
        if name in values:
            raise UserError(f"key '{key}' in {path} sets {name} a second time", "give it once")
        values[name] = known[name].from_toml(key, value)
    return values


def _with_flat_data_set(document: dict[str, Any], path: Path) -> dict[str, Any]:
    """The document with the keys of a table `[dataset]` at its top. Its `path` is `--dataset`. Lists are allowed."""
    table = document.get("dataset")
    if not isinstance(table, dict):
        return document
    keys = ("path", *(found.name for found in fields(OwnDataOptions)), "validation_share", "validation_seed")
    flat = {key: value for key, value in document.items() if key != "dataset"}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in keys:
            raise UserError(f"key '{key}' in [dataset] of {path} is not known", nearest(key, keys))
        if name in flat:
            raise UserError(f"key '{key}' in [dataset] of {path} sets {name} a second time", "give it once")
        is_list = isinstance(value, list) and all(isinstance(each, str | int) for each in value)
        names = tuple(str(each).lower() if isinstance(each, bool) else str(each) for each in value) if is_list else ()
        flat["dataset" if name == "path" else name] = joined_names(names) if is_list else value
    if "dataset" not in flat:
        raise UserError(f"[dataset] of {path} has no key 'path'", "give the file, folder or name of the data set")
    return flat
