"""Options of `predict` and `chat` that do not fit each other or the model."""

from __future__ import annotations

import os
from pathlib import Path

from actions.command.request import Request
from actions.run.console import is_first_process
from heterolora.common.errors import UserError, nearest
from heterolora.common.files import check_writable
from options.actions import CHAT, PREDICT
from options.declare import flag_of
from options.every import declared, flat
from options.predicting import ENDINGS, STDOUT, file_of

_OF_TEXT = ("max_new_tokens", "num_beams", "temperature", "top_p")


def check_predicting(request: Request) -> None:
    """Raise UserError for a request of `predict` or `chat` that cannot be carried out."""
    if request.action == PREDICT:
        _check_text(request)
        _check_output(request)
    elif request.action == CHAT:
        if not request.spec.writes_text:
            kind = "a classifier" if request.spec.classifies else "trained to choose"
            raise UserError(f"chat needs a language model, and this one is {kind}", "use python -m main predict")
        if request.options.devices.world > 1:
            raise UserError("chat runs in one process", "give --num-devices 1 --num-nodes 1")


def _check_text(request: Request) -> None:
    options, spec = request.options, request.spec
    values = flat(options)
    for name in () if spec.writes_text else _OF_TEXT:
        if values[name] != declared()[name].default:
            raise UserError(f"{flag_of(name)} is for generated text, and this model writes none", "leave it out")
    if options.num_beams > 1 and options.predicting.temperature:
        raise UserError("--num-beams and --temperature are both given", "search with beams, or draw tokens")
    if options.predicting.probabilities and not (spec.classifies and spec.labels):
        raise UserError("--probabilities is for classes, and this model has none", "leave it out")


def _check_output(request: Request) -> None:
    options = request.options.predicting
    if options.output is None and not options.text:
        raise UserError("--output is missing", f"give a file ({', '.join(ENDINGS)}), or {STDOUT} for standard output")
    if (output := file_of(options.output)) is None:
        return
    if output.suffix not in ENDINGS:
        found = f"--output {output} ends in {output.suffix or 'nothing'}"
        raise UserError(found, nearest(output.suffix, ENDINGS))
    if not os.path.isdir(output.parent):
        raise UserError(f"the folder {output.parent} of --output is not there", "make it, or give another --output")
    if os.path.isdir(output) or (os.path.exists(output) and not request.options.run.overwrite):
        found = "a folder" if os.path.isdir(output) else "there already"
        raise UserError(f"--output {output} is {found}", "give another name, or --overwrite to replace a file")
    source: Path | None = request.spec.place
    if source is not None and os.path.exists(source) and os.path.exists(output) and os.path.samefile(source, output):
        raise UserError(f"--output {output} is the file of --dataset", "give another name")
    if is_first_process():
        check_writable(output.parent, "free space, or give --output on another disk")
