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


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raises UserError if the output is one of the inputs, also by another name."""
    for given in inputs:
        if output.exists() and given.exists() and output.samefile(given):
            raise UserError(f"--output {output} is a file that this tool reads, {given}", "give another name")


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a tool's `main` and exits with its code."""
    sys.exit(ended(main))
