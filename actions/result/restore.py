"""A trained model for exports and inspection: without its data, or without its shortcuts."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table
from transformers import PreTrainedModel

from actions.command.request import Request
from actions.result.results import validate
from actions.training.experiment import build, plan_elements, put_weights
from actions.training.trainer import build_trainer
from heterolora.elements.adapt import adapt, heads
from heterolora.elements.search_space import SearchSpace
from model.checkpoint import Record
from model.load import load_config
from model.skeleton import skeleton


@dataclass(frozen=True)
class Restored:
    """A network with its trained weights."""

    network: PreTrainedModel
    space: SearchSpace | None  # None for a plain network
    record: Record  # of the run that trained it
    notes: tuple[str, ...]  # lines to print


def restore_trained(request: Request, dtype: torch.dtype | None = None) -> Restored:
    """The trained weights, in a base whose tensors are on the meta device: only its configuration is read.

    Without a checkpoint or adapter the elements are on the meta device too. `dtype` is that of the base, by default the
    one that its configuration names. Raises UserError if configuration, checkpoint or adapter do not fit.
    """
    config = load_config(request.base.name, request.spec)
    planned = plan_elements(request, config)
    if dtype is not None:
        config.dtype = dtype
    network = skeleton(config, request.spec.task)
    space = None if planned is None else adapt(network, planned)
    recorded = request.recorded
    if space is not None and (request.checkpoint or request.adapter):
        for module in (*space, *heads(network)):
            module.to_empty(device="cpu")
    # The fingerprint of a base without weights cannot be computed.
    own = Record(request.action, {}, request.base, recorded.base_sha256 if recorded else "")
    put_weights(request, own, network, space)
    record = recorded or own
    if request.adapter is None:
        record = replace(record, base=request.base)
    return Restored(network, space, record, notes=() if planned is None else planned.notes)


# ---- without shortcuts, for formats that cannot hold them


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
