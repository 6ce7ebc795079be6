"""Command line and `--config` file -> `Command`. The command line takes precedence over the file."""

from __future__ import annotations

import argparse
import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import model.family as families
from actions.command import completion
from actions.command.command import Command
from actions.command.options_file import overridden, read_options
from actions.command.other_names import flag_meant_by
from heterolora.common.errors import UserError, nearest
from options.actions import ACTIONS, LISTS, TOOLS, as_started
from options.declare import OptionInfo, flag_of
from options.every import declared

_EXAMPLES = {
    "python -m main train": "train on built-in toy data, in a minute or two",
    "python -m main train --load facebook/opt-350m --dataset rte": "",
    "python -m main test --load runs/NAME": "measure the result of a run",
    "python -m main predict --load runs/NAME --dataset new.csv --output predictions.csv": "",
    "python -m main train --config runs/NAME/config.toml": "repeat a run",
    "python -m main train --resume-training --load runs/NAME": "continue an interrupted run",
}
_OTHERS = {f"python -m main {name}": summary for name, summary in LISTS.items()}
_OTHERS |= {f"python tools/{tool.file}.py": tool.summary for tool in TOOLS.values()}
_ALL = "--help-all"


# Options whose earlier value a second one would hide. For others, the last one counts, as in scripts that add options.
_GIVEN_ONCE = ("config", "dataset")

# Options whose value is several names, with commas between them.
_LISTS = ("text_columns", "prompt_column", "labels", "target", "lm_eval")


class _Once(argparse.Action):
    """Stores a value. A second, other one is an error: only the last one would count."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        earlier = getattr(namespace, self.dest, values)
        if earlier != values:
            raise UserError(f"{option_string} is given twice: '{earlier}' and '{values}'", "give it once")
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError`."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see {self.prog} --help")

    def format_help(self) -> str:
        return as_started(super().format_help())


def parse_command(arguments: Sequence[str]) -> Command:
    """Parse the arguments of `python -m main`. Raises UserError for a mistake, and SystemExit for `--help`."""
    if arguments and not arguments[0].startswith("-") and arguments[0] not in ACTIONS:
        raise UserError(f"action '{arguments[0]}' is not known", nearest(arguments[0], (*ACTIONS, *LISTS)))
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        action = next((argument for argument in arguments if argument in ACTIONS), "ACTION")
        raise UserError(f"'{arguments[0]}' is given before the action", f"give the action first: {_first(action)}")
    written = {_with_dashes(argument): argument for argument in arguments}
    arguments = [_with_dashes(argument) for argument in arguments]
    parser = _build(_ALL in arguments or completion.is_asked())
    completion.complete(parser)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise _unknown_argument(written.get(unknown[0], unknown[0]))
    if namespace.action is None:
        raise UserError("no action is given", f"give one of {', '.join(ACTIONS)}, or --help")
    _check_lists(arguments, namespace.positional)
    typed = _command_line_values(namespace)
    config = typed.get("config")
    in_file, tables = overridden(*(read_options(config) if config else ({}, {})), typed)
    return Command(namespace.action, typed, in_file, tables)


def _with_dashes(argument: str) -> str:
    """The argument, with the dashes of an option's name for underscores: `--batch_size=4` is `--batch-size=4`."""
    name, *value = argument.split("=", 1)
    return "=".join((name.replace("_", "-"), *value)) if argument.startswith("--") else argument


def _check_lists(arguments: Sequence[str], positional: Sequence[str]) -> None:
    """Raise UserError for `--target q_proj v_proj`: argparse would take the second name for the model."""
    words = [word for each in arguments for word in (each.split("=", 1) if each.startswith("--") else [each])]
    for flag, first, second in zip(words, words[1:], words[2:], strict=False):
        if flag in map(flag_of, _LISTS) and second in positional and not _may_be_model(second):
            raise UserError(
                f"two values follow {flag}: '{first}' and '{second}'",
                f"separate them by a comma alone: {flag} {first.rstrip(',')},{second}",
            )


def _may_be_model(name: str) -> bool:
    return families.parse_model_name(name) is not None or "/" in name


def _build(everything: bool) -> Parser:
    """The parser. Its help shows the options that most runs need, or `everything`."""
    parser = Parser(
        prog="python -m main",
        usage=argparse.SUPPRESS,
        description="HeteroLoRA: LoRA fine-tuning that chooses where to put low-rank adapters.",
        epilog=f"{_listed('examples', _EXAMPLES)}\n\n{_listed('other commands', _OTHERS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", metavar="{" + ",".join(ACTIONS) + "}", title="actions")
    for action, summary in ACTIONS.items():
        sub = actions.add_parser(
            action,
            help=summary,
            usage=argparse.SUPPRESS,
            description=_description(action, summary, everything),
            epilog="Every option is also a key of the --config file, with _ instead of -.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=False,
            allow_abbrev=False,
        )
        sub.add_argument("positional", nargs="*", metavar="MODEL DATASET", help=argparse.SUPPRESS)
        sub.add_argument("-h", "--help", _ALL, action="help", help=argparse.SUPPRESS)
        _add_options(sub, action, everything)
    if completion.is_asked():
        for name in (*LISTS, *TOOLS):
            actions.add_parser(name)
    return parser


def _listed(heading: str, commands: Mapping[str, str]) -> str:
    started = {as_started(command): what for command, what in commands.items()}
    width = max(len(command) for command, what in started.items() if what)
    return "\n".join([f"{heading}:", *(f"  {each:<{width}}  {what}".rstrip() for each, what in started.items())])


def _description(action: str, summary: str, everything: bool) -> str:
    """What an action does, and the options that most runs need if not `everything` follows."""
    lines = [
        f"{summary[0].upper()}{summary[1:]}.",
        "",
        f"  python -m main {action} [MODEL [DATASET]] [--option VALUE …]",
    ]
    if not everything:
        common = {info.flag: info.in_brief for info in declared().values() if info.brief and info.used_by(action)}
        lines += ["", _listed("options that most runs need", common | {_ALL: "show all options"})]
    return "\n".join(lines)


def _add_options(parser: argparse.ArgumentParser, action: str, everything: bool) -> None:
    for heading, infos in itertools.groupby(declared().values(), lambda info: info.group):
        section = parser.add_argument_group(heading)
        for info in infos:
            shown = "" if info.default is None or info.type is bool else f" (default: {info.default})"
            is_shown = info.used_by(action) and everything
            help = (info.help + shown).replace("%", "%%") if is_shown else argparse.SUPPRESS
            added = section.add_argument(
                info.flag,
                *info.aliases,
                dest=info.name,
                action=_Once if info.name in _GIVEN_ONCE else "append" if info.repeats else "store",
                default=argparse.SUPPRESS,
                nargs="?" if info.type is bool else None,
                const="true" if info.type is bool else None,
                metavar=info.metavar,
                help=help,
            )
            completion.offer(added, info.choices)
            if info.opposite:
                section.add_argument(
                    flag_of(info.opposite),
                    dest=info.name,
                    default=argparse.SUPPRESS,
                    nargs="?",
                    const="true",
                    type=functools.partial(_opposite, info),
                    metavar=info.metavar,
                    help=f"the opposite of {info.flag}" if is_shown else argparse.SUPPRESS,
                )


def _opposite(info: OptionInfo, text: str) -> str:
    """The text that gives an option the opposite of `text`."""
    return "false" if replace(info, name=info.opposite).value_of(text) else "true"


def _command_line_values(namespace: argparse.Namespace) -> dict[str, Any]:
    known = declared()
    typed = {
        name: known[name].texts(text) if known[name].repeats else known[name].from_text(text)
        for name, text in vars(namespace).items()
        if name in known
    }
    if len(namespace.positional) > 2:
        raise UserError(f"unexpected argument '{namespace.positional[2]}'", "give at most a model and a data set")
    for name, value in zip(("model", "dataset"), namespace.positional, strict=False):
        value = known[name].value_of(value)
        if typed.get(name, value) != value:
            raise UserError(f"{flag_of(name)} is given twice: '{value}' and '{typed[name]}'", "give it once")
        typed[name] = value
    return typed


def _first(action: str) -> str:
    actions = f", with one of {', '.join(ACTIONS)}" if action == "ACTION" else ""
    return f"python -m main {action} …{actions}"


def _unknown_argument(argument: str) -> UserError:
    if not argument.startswith("-"):
        return UserError(
            f"unexpected argument '{argument}'", "give a model and a data set after the action, or options"
        )
    return UserError(f"option '{argument}' is not known", flag_meant_by(argument))
