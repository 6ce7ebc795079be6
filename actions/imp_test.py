"""`imp-test`: score every element once before training, and show which elements a budget would turn on."""

from __future__ import annotations

from lightning_fabric import Fabric

from actions.command.request import Request
from actions.result.scoring import next_commands, report_scores
from actions.run.console import is_first_process, say
from actions.run.endings import end_with_this_process
from actions.run.processes import cluster_environment
from actions.run.run_folder import SCORES, open_run
from actions.training.agreement import check_agreement
from actions.training.experiment import build
from actions.training.scoring import check_scoring, score
from actions.training.strategies.replicated import ScoringStrategy
from actions.training.trackers import check_login
from actions.training.trainer import check_devices
from heterolora.pictures.of_run import SCORES_PICTURE


def run(request: Request) -> None:
    """Score the elements, write the scores, and print the commands that go on from them."""
    mode = check_scoring(request)
    check_devices(request.options)
    check_login(request.options.run.logger)
    with open_run(request) as opened:
        experiment, folder = build(request), opened.folder
        devices = request.options.devices
        strategy = "auto" if devices.world == 1 else ScoringStrategy()
        fabric = Fabric(**devices.for_lightning(strategy), plugins=cluster_environment())
        try:
            fabric.launch()
            check_agreement(experiment)
            say(f"run folder: {folder}")
            found, seconds = score(experiment, fabric, mode)
            if is_first_process():
                report_scores(experiment, found, mode, folder)
                files = f"{folder / SCORES}, {folder / SCORES_PICTURE}"
                say(f"scored {len(found.scored)} elements in {seconds:.1f} s: {files}")
                say(next_commands(experiment.options, found.has_shortcuts, folder))
        except BaseException:
            end_with_this_process(fabric.strategy.launcher)
            raise
