"""`test`: measure a model or a checkpoint on the test split, by the benchmark's own metrics too."""

from __future__ import annotations

from pathlib import Path

from actions.console import is_first_process, note, say
from actions.experiment import build
from actions.resolve import Request
from actions.results import measure, save_metrics, show_parameters
from actions.run_folder import open_run_folder, write_config
from actions.trainer import build_trainer, check_devices


def run(request: Request) -> None:
    check_devices(request.options)
    experiment = build(request)
    options = experiment.options
    if experiment.untrained_head:
        note("the classification head is untrained: these figures say what chance gives, not what the model knows")
    folder = open_run_folder(options)
    say(f"run folder: {folder}")
    show_parameters(experiment, folder)
    if is_first_process():
        write_config(folder, request.action, options)
    trainer = build_trainer(options, experiment.task, folder)
    checkpoint = Path(options.load) if options.load_type == "pl" else None
    save_metrics(experiment, folder, checkpoint, measure(experiment, trainer))
