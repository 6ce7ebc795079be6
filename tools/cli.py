"""Shared by the tools: a user error is one line on stderr and exit code 2, as in `python -m main`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from actions.console import stop_with
from heterolora.errors import UserError

USER_ERROR = 2


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError, and whose `--help` shows `doc`, the docstring of the tool."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see python tools/{self.prog} --help")


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a tool's `main` and exits with its code."""
    try:
        main()
    except UserError as mistake:
        sys.exit(stop_with(mistake, USER_ERROR))
    sys.exit(0)
