"""The command line: parse, check, dispatch. See `python -m main --help`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from functools import partial

from actions.command.parse import parse_command
from actions.run.console import hide_warnings, print_any_text, set_log_level
from actions.run.endings import end_with_parent, ended, explanation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A mistake of the user gives one line on stderr and code 2."""
    return ended(partial(_run, sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    debugging = "debug" in arguments
    end_with_parent()
    print_any_text()
    try:
        command = parse_command(arguments)
        debugging = command.values["log_level"] == "debug"
        if command.values["log_level"] not in ("debug", "info"):
            hide_warnings()  # those that come while files are read
        from actions.request.resolve import resolve
        from actions.request.resuming import continue_if_requeued

        request = resolve(continue_if_requeued(command))
        action = importlib.import_module(f"actions.{command.action.replace('-', '_')}")
        set_log_level(command.values["log_level"])  # after the libraries are imported: they set levels
        action.run(request)
    except Exception as failure:
        if debugging and explanation(failure) is not None:
            traceback.print_exc()
        raise


if __name__ == "__main__":
    sys.exit(main())
