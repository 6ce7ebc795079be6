"""`train-dyrealloc`: fine-tune, and reallocate the elements during training."""

from __future__ import annotations

from pathlib import Path

from actions.command.request import Request
from actions.result.reallocation import budget_in_words, report_search
from actions.run.console import is_first_process, say
from actions.run.requeue import requeued_if_stopped
from actions.run.run_folder import open_run
from actions.train import exported, finish, fit, start
from actions.training.reallocation import reallocation, search_options
from actions.training.trackers import check_login
from actions.training.trainer import check_devices
from heterolora.common.checks import present
from heterolora.elements.rank_units import compact_ranks, rank_units
from heterolora.pictures.of_run import draw_history


def run(request: Request) -> Path:
    """Train while the search reallocates, measure and export the best weights, and print the result of the search.

    Returns the run folder.
    """
    options = search_options(request)
    check_devices(request.options)
    check_login(request.options.run.logger)
    with requeued_if_stopped(request.options.run), open_run(request) as opened:
        experiment, folder = start(request, opened.folder), opened.folder
        space = present(experiment.task.space)
        say(budget_in_words(rank_units(space) if options.by_rank else space, options))
        reallocate = reallocation(experiment, options, folder)
        metrics = fit(experiment, opened, (reallocate,), reallocate.settled)
        if options.by_rank:
            compact_ranks(space)
        with exported(experiment, folder):
            if is_first_process():
                draw_history(reallocate.history, folder)
        finish(experiment, folder, metrics)
    report_search(request, space, reallocate, folder)
    return folder
