"""`test`: measure a model or a checkpoint on the test split, also with the benchmark's official metrics."""

from __future__ import annotations

import functools

from actions.command.request import Request
from actions.result.harness import evaluate, read_tasks
from actions.result.results import measure
from actions.run.console import note
from actions.run.run_folder import open_run
from actions.train import start
from actions.training.trainer import build_trainer, check_devices


def run(request: Request) -> None:
    """Measure the weights on the test splits, and with `--lm-eval` on the tasks of the harness."""
    check_devices(request.options)
    tasks = request.options.run.lm_eval
    harness = None if tasks is None else read_tasks(tasks)
    with open_run(request) as opened:
        experiment = start(request, opened.folder)
        if experiment.untrained_head:
            note("the classification head is untrained: these metrics are at chance level")
        checkpoint = None if request.checkpoint is None else request.checkpoint.path
        trainer = build_trainer(experiment, opened.folder)
        device = trainer.strategy.root_device
        more = () if harness is None else (functools.partial(evaluate, harness, experiment, device),)
        measure(experiment, trainer, opened.folder, checkpoint, more)
        for split, name in experiment.task.one_class.items():
            note(f"all predictions on {split} are '{name}': the model does not distinguish the classes")
