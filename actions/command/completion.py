"""Completion of a command line by a shell, through argcomplete, which knows bash, zsh and fish."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

#: An environment variable: argcomplete's shell function sets it, to the number of words before the arguments.
_ASKED = "_ARGCOMPLETE"


def is_asked() -> bool:
    """Whether a shell asks for the words that may follow."""
    return _ASKED in os.environ


def complete(parser: argparse.ArgumentParser, of_tool: bool = False) -> None:
    """Answer a shell that asks, and end. Without such a question this does nothing.

    `of_tool`: the first word after the command is the name of a tool, and `parser` reads the words after it.
    """
    if is_asked():
        import argcomplete

        os.environ[_ASKED] = "2" if of_tool else "1"
        argcomplete.autocomplete(parser)


def offer(argument: argparse.Action, choices: Sequence[str]) -> None:
    """Let a shell that asks complete the value of an argument."""
    if is_asked() and choices:
        from argcomplete.completers import ChoicesCompleter

        argument.completer = ChoicesCompleter(dict.fromkeys(choices, ""))  # type: ignore[attr-defined]
