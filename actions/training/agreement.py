"""Checks before the first pass that all processes are about to run the same passes.

A sharded base gathers weights in every pass, and gradients are summed after every step. A process that runs other
passes than the others would make all of them wait until a timeout.
"""

from __future__ import annotations

from pathlib import Path

from actions.training.experiment import Experiment
from heterolora.common import distributed
from options.every import declared, flat


def check_agreement(experiment: Experiment) -> None:
    """Raise UserError on every process unless all of them have the same options, data, base and elements.

    Options that name places, such as a folder, may differ.
    """
    known, space = declared(), experiment.task.space
    values = {
        known[name].flag: repr(value)
        for name, value in flat(experiment.options).items()
        if not isinstance(value, Path) and known[name].resume != "start"
    }
    values["the rows of the data set"] = repr(experiment.data.digests)
    values["the base model"] = experiment.task.record.base_sha256
    values["the elements and which of them are on"] = repr([(each.element, each.enabled) for each in space or ()])
    distributed.check_agreement(values, expected="start all of them with the same command, files and versions")
