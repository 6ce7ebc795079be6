"""The tasks. Each row of `heterolora.elements.task.TASKS` has a file here with its name and its class, `TASK`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataset.spec import DatasetSpec
    from model.task.fine_tuning import FineTuning


def class_of(spec: DatasetSpec) -> type[FineTuning]:
    """Return the class that trains and measures the task of a data set."""
    file = spec.task if spec.choices is None else "multiple_choice"
    return importlib.import_module(f"{__name__}.{file}").TASK
