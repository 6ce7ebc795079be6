"""The command line: parse, check, dispatch. See `python -m main --help`. `fit` is training from Python."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.command.parse import parse_command
from actions.result.metrics_file import read_metrics
from actions.run.console import hide_warnings, print_any_text, set_log_level
from actions.run.endings import end_with_parent, ended, explanation
from actions.run.run_folder import ADAPTER
from heterolora.common.errors import UserError, nearest
from options.actions import ANSWERING, LISTS, TRAIN, TRAINING
from options.declare import flag_of

if TYPE_CHECKING:
    from actions.command.request import Request


@dataclass(frozen=True)
class Fitted:
    """A finished training run.

    Attributes:
        folder: the run folder.
        metrics: split -> metric -> value, of the measured weights.
        adapter: the folder of the adapter in PEFT's format. None for a plain model.
    """

    folder: Path
    metrics: Mapping[str, Mapping[str, float | None]]
    adapter: Path | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A mistake of the user gives one line on stderr and code 2."""
    return ended(partial(_run, sys.argv[1:] if arguments is None else arguments))


def fit(action: str = TRAIN, **options: Any) -> Fitted:
    """Train as `python -m main train` does, from Python, in this process: it prints the same, and checks the same.

    Example::

        run = fit(model="roberta_lora", load="FacebookAI/roberta-base", dataset="sst2", max_epochs=1)
        run.metrics["validation"]["accuracy"]

    Args:
        action: `train` or `train-dyrealloc`.
        options: values of the options by their names. None leaves an option at its default.

    Raises:
        UserError: a mistake, as the command line would print it.
        DivergenceError: the loss or the weights are no longer finite.
    """
    if action not in TRAINING:
        raise UserError(f"fit cannot run '{action}'", nearest(action, TRAINING))
    given = [f"{flag_of(name)}={_text(value)}" for name, value in options.items() if value is not None]
    request = _request(parse_command([action, *given]))
    if request.options.devices.world > 1:
        raise UserError("fit trains in one process", "use python -m main for several devices")
    folder: Path = _act(request)
    metrics, _ = read_metrics(folder)
    return Fitted(folder, metrics, folder / ADAPTER if (folder / ADAPTER).is_dir() else None)


def _text(value: Any) -> str:
    """The value of an option as on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _run(arguments: Sequence[str]) -> None:
    debugging = "debug" in arguments
    end_with_parent()
    print_any_text()
    if arguments and arguments[0] in LISTS:
        importlib.import_module(f"actions.{arguments[0]}").main(arguments[1:])
        return
    try:
        command = parse_command(arguments)
        debugging = command.values["log_level"] == "debug"
        if command.values["log_level"] not in ("debug", "info"):
            hide_warnings()  # those that come while files are read
        _act(_request(command))
    except Exception as failure:
        if debugging and explanation(failure) is not None:
            traceback.print_exc()
        raise


def _request(command: Command) -> Request:
    from actions.request.new_data import new_data_of
    from actions.request.resolve import resolve
    from actions.request.resuming import continue_if_requeued

    command = continue_if_requeued(command)
    return resolve(command, partial(new_data_of, command)) if command.action in ANSWERING else resolve(command)


def _act(request: Request) -> Any:
    action = importlib.import_module(f"actions.{request.action.replace('-', '_')}")
    set_log_level(request.options.run.log_level)  # after the libraries are imported: they set levels
    return action.run(request)


if __name__ == "__main__":
    sys.exit(main())
