"""An export in any format: what is checked before the model is read, and shortcuts that are left out."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from actions.command.command import Command
from actions.command.request import Request
from actions.request.elements import request_of
from actions.result.restore import cost_of_dropping, has_shortcuts, without_shortcuts
from actions.run.console import say, set_log_level
from actions.run.run_folder import measured_checkpoint
from heterolora.common.errors import UserError
from heterolora.elements.task import TASKS


@dataclass(frozen=True)
class Export:
    """The arguments of the tool, the request for the result, and whether --dataset is given."""

    args: argparse.Namespace
    request: Request
    dataset_given: bool

    @classmethod
    def of(cls, args: argparse.Namespace, command: Command) -> Export:
        if command.load_type not in ("pl", "peft"):
            raise UserError(f"{args.result} is neither a run nor a checkpoint nor an adapter", "expected one of them")
        return cls(args, request_of(command), "dataset" in command.given)

    @property
    def run_folder(self) -> Path | None:
        """The folder of the run if its metrics are those of the exported weights, for the card."""
        request, result = self.request, self.args.result
        same = request.checkpoint is not None and measured_checkpoint(result) == request.checkpoint.path.name
        return result if same and not has_shortcuts(request) else None


class Format(Protocol):
    """A file of this folder.

    `check` raises UserError if the format cannot hold the result, and needs no model. `write` may use `run_folder`.
    """

    COMPUTES: bool  # whether it needs the devices of the request

    def check(self, export: Export) -> None: ...

    def write(self, export: Export, run_folder: Path | None) -> None: ...


def export(given: Export, kind: Format) -> None:
    from actions.training.trainer import check_devices

    request, args = given.request, given.args
    set_log_level(request.options.run.log_level)
    _check(given, kind)
    if kind.COMPUTES or has_shortcuts(request):
        check_devices(request.options)
    run_folder = given.run_folder
    if has_shortcuts(request):
        say(cost_of_dropping(replace(request, notes=()), args.output.parent))
        given = replace(given, request=without_shortcuts(request))
    kind.write(given, run_folder)


def _check(given: Export, kind: Format) -> None:
    args, request = given.args, given.request
    adapter, spec = request.adapter, request.spec
    kind.check(given)
    if has_shortcuts(request) and not args.drop_shortcuts:
        raise UserError(
            f"{args.result} has shortcuts that are on, or `renormalize`, and --format {args.format} cannot hold them",
            "leave them out with --drop-shortcuts, which shows what that costs",
        )
    if adapter is not None and adapter.record is None and not given.dataset_given:
        # The data set gives the head and the names of the labels.
        raise UserError(f"{adapter.folder} does not say what it was trained on", "give --dataset")
    if adapter is not None and adapter.settings.task_type not in (None, *TASKS[spec.task].peft_types):
        raise UserError(
            f"{adapter.folder} is for {adapter.settings.task_type}, and {spec.name} for {spec.task}",
            "give a --dataset of the adapter's task",
        )
