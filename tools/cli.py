"""Shared by the tools: they end as `python -m main` does, and never write onto their input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from actions.endings import ended
from heterolora.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError, and whose `--help` shows `doc`, the docstring of the tool."""

    def __init__(self, doc: str) -> None:
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UserError(message, f"see python tools/{self.prog} --help")


def check_output(output: Path, inputs: Iterable[Path], ours: Callable[[str], bool]) -> None:
    """Raises UserError if the output is an input, also by another name, or an existing file of another program.

    `ours` gets the text of an existing file and returns whether this tool wrote it.
    """
    if not output.exists():
        return
    for given in inputs:
        if given.exists() and output.samefile(given):
            raise UserError(f"{output} is an input of this tool, {given}", "give the output another name")
    if output.is_file():
        try:
            known = ours(output.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = False
        if not known:
            raise UserError(f"{output} exists, and another program wrote it", "give the output another name")


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a tool's `main` and exits with its code."""
    sys.exit(ended(main))
