"""Shared by the tools: they end as `python -m main` does, and never write onto their input."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from actions.command.completion import complete
from actions.run.console import hide_warnings, print_any_text
from actions.run.endings import end_with_parent, ended
from heterolora.common.checks import Condition
from heterolora.common.errors import UserError
from heterolora.program import STARTED
from options.actions import TOOLS, as_started
from options.declare import OptionInfo


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError, and whose `--help` shows `doc`, the docstring of the tool.

    `command` starts the tool, if it is no file of `tools/`.
    """

    def __init__(self, doc: str, command: str | None = None) -> None:
        shape = argparse.RawDescriptionHelpFormatter
        self._completes = False
        super().__init__(prog=command or _started_tool(), description=doc, formatter_class=shape, allow_abbrev=False)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        if not self._completes:
            self._completes = True  # argcomplete calls this method again
            complete(self, of_tool=True)
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        return as_started(super().format_help())

    def error(self, message: str) -> NoReturn:
        found, _, expected = message.partition("; ")  # as `whole_number` and `real` write it
        raise UserError(found, expected or f"see {self.prog} --help")


def _started_tool() -> str:
    name = os.environ.get(STARTED)
    return f"python tools/{Path(sys.argv[0]).name}" if name is None else f"heterolora {name}"


def whole_number(check: Condition) -> Callable[[str], int]:
    """The `type` of an argument that is a whole number, checked as the options of `python -m main` are."""
    return _reader(int, check)


def real(check: Condition) -> Callable[[str], float]:
    """The `type` of an argument that is a finite number, checked as the options of `python -m main` are."""
    return _reader(float, check)


def _reader(kind: type, check: Condition) -> Callable[[str], Any]:
    option = OptionInfo("", kind, None, "", "", check)

    def read(text: str) -> Any:
        try:
            return option.value_of(text)
        except UserError as mistake:  # argparse puts the flag before the message
            found = mistake.found.removeprefix(option.flag).strip()
            raise argparse.ArgumentTypeError(f"{found}; {mistake.expected}") from None

    return read


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add the flag whose value `check_output` takes."""
    parser.add_argument("--overwrite", action="store_true", help="replace files that this tool did not write, too")


def check_output(output: Path, inputs: Iterable[Path], is_ours: Callable[[Path], bool], overwrite: bool) -> None:
    """Raise UserError if the output is one of the inputs, also by another name, or a file that the tool did not write.

    Devices and pipes are written into, and an empty file has nothing to lose.

    Args:
        is_ours: whether the tool wrote the file that is there.
        overwrite: whether --overwrite is given.
    """
    if not os.path.exists(output):
        return
    for given in inputs:
        if os.path.exists(given) and output.samefile(given):
            raise UserError(f"{output} is a file that this tool reads, {given}", "give another name")
    if output.is_file() and output.stat().st_size and not overwrite and not is_ours(output):
        raise UserError(f"{output} exists, and this tool did not write it", "give another name, or --overwrite")


def begins_with(mark: str) -> Callable[[Path], bool]:
    """Whether the first 4,096 bytes of a file contain `mark`, for `check_output`."""

    def check(path: Path) -> bool:
        with contextlib.suppress(OSError), path.open("rb") as file:
            return mark.encode() in file.read(4096)
        return False

    return check


def check_different(inputs: Sequence[Path]) -> None:
    """Raise UserError if an input is given twice, also by another name."""
    resolved = [os.path.realpath(path) for path in inputs]  # `Path.resolve` fails for a link to itself
    for given, path in zip(inputs, resolved, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"{given} is given twice", "give each of them once")


def start(name: str, arguments: Sequence[str]) -> int:
    """Run the tool of this name with the arguments after it, or `python -m main`, for the command `heterolora`."""
    if name in TOOLS:
        tool = importlib.import_module(f"tools.{TOOLS[name].file}")
        run(partial(tool.main, arguments[1:]))
    from main import main

    return main(arguments, is_program=True)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a tool's `main` and exits with its code."""
    end_with_parent()
    print_any_text()
    hide_warnings()
    sys.exit(ended(main))
