"""The command line: parse, check, dispatch. See `python -m main --help`. `fit` is training from Python."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actions.command.command import Command
from actions.command.parse import parse_command
from actions.result.metrics_file import read_metrics
from actions.run.collection import seldom_collected
from actions.run.console import hide_warnings, print_any_text, set_log_level
from actions.run.endings import end_with_parent, ended, explanation
from actions.run.run_folder import ADAPTER
from heterolora.common.errors import UserError, nearest
from options.actions import ANSWERING, LISTS, PREDICT, TRAIN, TRAINING
from options.declare import flag_of
from options.predicting import STDOUT

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

    def predict(self, texts: str | Sequence[str] | None = None, **options: Any) -> list[Mapping[str, Any]]:
        """What the measured weights say about new rows: each row with the columns that `python -m main predict` adds.

        Example::

            run.predict(["a film that I will see again"])[0]["label"]
            run.predict(dataset="reviews.csv", probabilities=True)

        Args:
            texts: one text for each row. None: the rows are those of the option `dataset`.
            options: of `predict`, by their names.

        Raises:
            UserError: a mistake, as the command line would print it.
        """
        if (texts is None) == (options.get("dataset") is None):
            raise UserError("predict needs texts, or the option dataset", "give one of them")
        if options.get("output") is not None:
            raise UserError("predict returns the rows, and output is given", "leave it out")
        rows = [f"--text={text}" for text in ([texts] if isinstance(texts, str) else texts or ())]
        request = _request_of(PREDICT, {"load": self.folder, **options}, rows or [f"--output={STDOUT}"])
        rows_of: Callable[[Request], list[Mapping[str, Any]]] = importlib.import_module("actions.predict").predictions
        return rows_of(request)


def main(arguments: Sequence[str] | None = None, *, is_program: bool = False) -> int:
    """Run one command and return its exit code. A mistake of the user gives one line on stderr and code 2.

    Args:
        arguments: of the command. None: those of this process.
        is_program: whether this process runs nothing else.
    """
    return ended(partial(_run, sys.argv[1:] if arguments is None else arguments, is_program))


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
    folder: Path = _act(_request_of(action, options))
    metrics, _ = read_metrics(folder)
    return Fitted(folder, metrics, folder / ADAPTER if (folder / ADAPTER).is_dir() else None)


def _request_of(action: str, options: Mapping[str, Any], more: Sequence[str] = ()) -> Request:
    """The request of a command with these options, for this process alone."""
    given = [f"{flag_of(name)}={_text(value)}" for name, value in options.items() if value is not None]
    request = _request(parse_command([action, *given, *more]))
    if request.options.devices.world > 1:
        raise UserError(f"{action} runs in one process here", "use python -m main for several devices")
    return request


def _text(value: Any) -> str:
    """The value of an option as on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _run(arguments: Sequence[str], is_program: bool) -> None:
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
        _act(_request(command), is_program)
    except Exception as failure:
        if debugging and explanation(failure) is not None:
            traceback.print_exc()
        raise


@seldom_collected()
def _request(command: Command) -> Request:
    from actions.request.elements import request_of
    from actions.request.new_data import new_data_of
    from actions.request.resuming import continue_if_requeued

    command = continue_if_requeued(command)
    return request_of(command, partial(new_data_of, command)) if command.action in ANSWERING else request_of(command)


def _act(request: Request, is_program: bool = False) -> Any:
    with seldom_collected(stays=is_program):
        action = importlib.import_module(f"actions.{request.action.replace('-', '_')}")
    set_log_level(request.options.run.log_level)  # after the libraries are imported: they set levels
    return action.run(request)


if __name__ == "__main__":
    sys.exit(main(is_program=True))
