"""Which values of a metric are better. Importing this file is cheap."""

from __future__ import annotations

from typing import Literal

from dataset.spec import CHOICE_METRICS
from heterolora.common.errors import UserError, nearest
from heterolora.elements.task import TASKS

_LOWER_IS_BETTER = ("perplexity", "rmse", "mae")


def mode(name: str) -> Literal["max", "min"]:
    """Return whether higher or lower values of a metric, or of the loss, are better.

    Raises UserError if the name is not known.
    """
    known = {*CHOICE_METRICS, *(metric for task in TASKS.values() for metric in task.metrics)}
    if name != "loss" and name not in known:
        raise UserError(f"metric '{name}' is not known", nearest(name, known))
    return "min" if name == "loss" or name in _LOWER_IS_BETTER else "max"
