"""The command line: parse, check, dispatch. See `python -m main --help`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

from actions.console import is_lost_process, print_any_text, set_log_level, stop_with
from actions.parse import parse
from heterolora.errors import UserError

FAILED, USER_ERROR = 1, 2
TERMINATED = 128 + 15  # the exit code that a shell reports after SIGTERM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A mistake of the user gives one line on stderr and code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debugging = "debug" in arguments
    print_any_text()
    try:
        command = parse(arguments)
        debugging = command.options.run.log_level == "debug"
        from actions.resolve import continue_if_requeued, resolve  # after --help: it imports family and data set tables

        request = resolve(continue_if_requeued(command))
        action = importlib.import_module(f"actions.{command.action.replace('-', '_')}")
        set_log_level(command.options.run.log_level)  # after the libraries are imported: they set levels
        action.run(request)
    except UserError as mistake:
        if debugging:
            traceback.print_exc()
        return stop_with(mistake, USER_ERROR)
    except RuntimeError as failure:
        if debugging or not is_lost_process(failure):
            raise
        print("error: another process of this run is gone; see its output, then --resume-training", file=sys.stderr)
        return FAILED
    except SystemExit as leaving:
        return TERMINATED if type(leaving).__name__ == "SIGTERMException" else leaving.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
