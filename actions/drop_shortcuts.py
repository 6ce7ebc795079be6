"""A model without its shortcuts, for formats that cannot hold them, and the change of its metrics."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from actions.experiment import build
from actions.resolve import Request
from actions.results import validate
from actions.trainer import build_trainer


def has_shortcuts(request: Request) -> bool:
    """Whether the model that `--load` names has shortcuts that are on, or normalises once more after them."""
    if request.adapter is not None:
        return request.adapter.shortcut is not None
    return request.recorded is not None and request.recorded.has_shortcuts


def without_shortcuts(request: Request) -> Request:
    """The same model without shortcuts, as LoRA alone."""
    checkpoint, adapter, adapted = request.checkpoint, request.adapter, request.adapted
    return replace(
        request,
        options=replace(request.options, model=request.options.model.removesuffix("_ags"), shortcut_config=None),
        adapted=None if adapted is None else replace(adapted, shortcuts=False),
        configs={kind: config for kind, config in request.configs.items() if kind != "shortcut"},
        must_agree={kind: config for kind, config in request.must_agree.items() if kind != "shortcut"},
        checkpoint=None if checkpoint is None else checkpoint.without_shortcuts(),
        adapter=None if adapter is None else replace(adapter, shortcut=None, shortcut_weights={}),
    )


def cost_of_dropping(request: Request, folder: Path) -> Table:
    """The validation metrics with and without shortcuts. `folder` is the root folder of the trainer."""
    figures = []
    for model in (request, without_shortcuts(request)):
        experiment = build(model)
        figures.append(validate(experiment, build_trainer(experiment, folder)))
        del experiment
        gc.collect()  # one model in memory at a time
    before, after = figures
    table = Table("split", "metric", "with shortcuts", "without", "change", title="What dropping the shortcuts costs")
    for column in table.columns[2:]:
        column.justify = "right"
    for split, row in before.items():
        for name, value in row.items():
            now = after[split][name]
            table.add_row(split, name, f"{value:.4f}", f"{now:.4f}", f"{now - value:+.4f}")
    return table
