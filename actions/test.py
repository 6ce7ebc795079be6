"""`test`: measure a model or a checkpoint on the test split, also with the benchmark's official metrics."""

from __future__ import annotations

from actions.console import note
from actions.resolve import Request
from actions.results import measure
from actions.train import start
from actions.trainer import build_trainer


def run(request: Request) -> None:
    experiment, folder = start(request)
    if experiment.untrained_head:
        note("the classification head is untrained: these metrics are at chance level")
    checkpoint = None if request.checkpoint is None else request.checkpoint.path
    measure(experiment, build_trainer(experiment, folder), folder, checkpoint)
