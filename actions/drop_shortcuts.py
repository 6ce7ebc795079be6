"""A model without its shortcuts, for formats that know none, and what that costs."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from actions.experiment import build
from actions.resolve import Request
from actions.results import validate
from actions.trainer import build_trainer
from heterolora.config import parse
from heterolora.element import SHORTCUTS
from model.checkpoint import KEY, record_of

_AMONG_WEIGHTS = ".shortcuts."


def has_shortcuts(request: Request) -> bool:
    """Whether the model that `--load` names has shortcuts that are on, or normalises once more for them."""
    if request.adapter is not None:
        return request.adapter.shortcut is not None
    record = None if request.checkpoint is None else record_of(request.checkpoint)
    if record is None or record.shortcut is None:
        return False
    return parse(record.shortcut, "shortcut").renormalize or any(_is_shortcut(key) for key in record.on)


def without_shortcuts(request: Request) -> Request:
    """The same model without any: as LoRA alone."""
    checkpoint, adapter, adapted = request.checkpoint, request.adapter, request.adapted
    if checkpoint is not None:
        checkpoint = _without(checkpoint)
    if adapter is not None:
        adapter = replace(adapter, shortcut=None, shortcut_weights={})
    return replace(
        request,
        options=replace(request.options, model=request.options.model.removesuffix("_ags"), shortcut_config=None),
        adapted=None if adapted is None else replace(adapted, shortcuts=False),
        configs={kind: config for kind, config in request.configs.items() if kind != "shortcut"},
        must_agree={kind: config for kind, config in request.must_agree.items() if kind != "shortcut"},
        checkpoint=checkpoint,
        adapter=adapter,
    )


def cost_of_dropping(request: Request, folder: Path) -> Table:
    """The validation figures with shortcuts and without; `folder` is any that a trainer may call its own."""
    figures = []
    for model in (request, without_shortcuts(request)):
        experiment = build(model)
        figures.append(validate(experiment, build_trainer(experiment.options, experiment.task, folder)))
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


def _without(checkpoint: dict[str, Any]) -> dict[str, Any]:
    record = record_of(checkpoint)
    options = {**record.options, "model": record.options["model"].removesuffix("_ags")}
    options.pop("shortcut_config", None)
    on = tuple(key for key in record.on if not _is_shortcut(key))
    state = {name: tensor for name, tensor in checkpoint["state_dict"].items() if _AMONG_WEIGHTS not in name}
    kept = replace(record, options=options, shortcut=None, on=on)
    return {**checkpoint, "state_dict": state, KEY: kept.as_dict()}


def _is_shortcut(key: str) -> bool:
    return key.split(".")[-1] in SHORTCUTS
