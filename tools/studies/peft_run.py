"""Trains an adapter of the PEFT package in the training loop of this program: an arm of a study.

`python -m tools.studies.peft_run METHOD PARAMETERS SCORES.toml` and then the options of `train`. The model is plain;
PEFT adds its own layers. SCORES.toml lists the places and their widths. The run folder is that of any run, except that
it has no adapter. `--resume-training --load RUN/checkpoints/last.ckpt` continues it.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tools.cli import run

import pytorch_lightning as pl
import torch
from peft import EvaConfig, LoraConfig, PeftModel, get_peft_model, initialize_lora_eva_weights

from actions.command.parse import parse_command
from actions.request.elements import request_of
from actions.result.export import LORA
from actions.result.results import show_parameters
from actions.run.console import is_first_process, say, set_log_level
from actions.run.run_folder import open_run, write_config
from actions.train import fit
from actions.training.experiment import Experiment, build
from actions.training.trainer import check_devices
from heterolora.choosing import scores as scores_file
from heterolora.choosing.allocation import Scored, tie_generator
from heterolora.choosing.ranks import Budget, assign
from heterolora.common.errors import UserError
from heterolora.common.files import write_text
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Element, at_ranks
from heterolora.elements.peft_config import peft_config
from heterolora.elements.task import TASKS
from model.task.scoring import batch_count
from tools.studies.adalora import Allocate, adalora_config
from tools.studies.jobs import EVEN

_EVA_BATCHES = 32


@dataclass(frozen=True)
class Adapted:
    """A network with PEFT's layers.

    Attributes:
        elements: returns the places with their ranks, when training is over.
        callbacks: what the method does during training.
    """

    network: PeftModel
    elements: Callable[[], list[Element]]
    callbacks: tuple[pl.Callback, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train. Raises UserError if the budget pays for no adapter of this method."""
    method, parameters, scores, *options = sys.argv[1:] if arguments is None else arguments
    request = request_of(parse_command(["train", *options]))
    set_log_level(request.options.run.log_level)
    check_devices(request.options)
    places = [item.element for item in scores_file.read(Path(scores)).scored]
    with open_run(request) as opened:
        # The weights of a checkpoint fit only once PEFT's layers are there. Lightning loads them when training starts.
        plain, folder = build(replace(request, checkpoint=None, resumes=False)), opened.folder
        adapted = _adapt(plain, method, int(parameters), places)
        experiment = replace(plain, task=plain.task.again(network=adapted.network), resumed=request.resumed)
        say(f"run folder: {folder}")
        show_parameters(experiment, folder)
        if is_first_process():
            write_config(folder, request.action, experiment.options, experiment.task.record.configs)
        fit(experiment, opened, adapted.callbacks)
        if is_first_process():
            write_text(folder / LORA, ElementConfig.of(adapted.elements(), "lora").to_toml())


def _adapt(experiment: Experiment, method: str, budget: int, places: Sequence[Element]) -> Adapted:
    """Put PEFT's layers into the network, within the budget."""
    if method == "adalora":
        return _adalora(experiment, places, budget)
    if method == "eva":
        return _eva(experiment, places, budget)
    return _fixed(experiment, uniform_ranks(places, budget, experiment.options.seed), method)


def _fixed(experiment: Experiment, uniform: Sequence[Element], method: str) -> Adapted:
    more: dict[str, Any] = {"pissa": {"init_lora_weights": "pissa"}}.get(method, {})
    on = [replace(element, settings=_settings(element, method)) for element in uniform]
    return Adapted(
        get_peft_model(experiment.task.network, _config(experiment, on, **more)), functools.partial(list, on)
    )


def _adalora(experiment: Experiment, places: Sequence[Element], budget: int) -> Adapted:
    if experiment.options.run.patience is not None:
        raise UserError("peft:adalora cannot end early: its ranks follow from the length of the run", "no --patience")
    values = peft_config(places, _peft_type(experiment))
    shared = {name: values[name] for name in ("task_type", "lora_dropout", "target_modules")}
    config = adalora_config(places, budget, int(experiment.steps), **shared)
    network = get_peft_model(experiment.task.network, config)
    allocate = Allocate(network, places, budget)
    stopped = experiment.options.run.stop_after is not None
    return Adapted(network, functools.partial(allocate.final_elements, part=stopped), (allocate,))


def uniform_ranks(places: Sequence[Element], budget: int, seed: int) -> list[Element]:
    """The places with an element, at ranks as equal as the budget allows: those of the arm `uniform`."""
    scored = [Scored(element, 1.0) for element in places]
    found = assign(scored, EVEN, Budget("parameters", budget), "off", tie_generator(seed, 0)).ranks
    return at_ranks(places, found)


def _settings(element: Element, method: str) -> Any:
    """PiSSA's own scaling is 1, and rsLoRA's is alpha / √r with one alpha for all ranks."""
    if method == "pissa":
        return replace(element.settings, alpha=float(element.rank))
    if method == "rslora":
        return replace(element.settings, alpha=16.0, use_rslora=True)
    return element.settings


def _config(experiment: Experiment, on: Sequence[Element], **more: Any) -> LoraConfig:
    values = peft_config(on, _peft_type(experiment))
    values.pop("peft_type")
    return LoraConfig(**(values | more))


def _eva(experiment: Experiment, places: Sequence[Element], budget: int) -> Adapted:
    """EVA redistributes the ranks of a uniform adapter by explained variance."""
    plain, batches = experiment.task.network, _batches(experiment)
    adapted: list[PeftModel] = []

    def redistribute(start: Sequence[Element]) -> list[Element]:
        if adapted:
            adapted.pop().unload()
        network = get_peft_model(
            plain, _config(experiment, start, init_lora_weights="eva", eva_config=EvaConfig(rho=2.0))
        )
        adapted.append(network)
        initialize_lora_eva_weights(
            network,
            batches,
            prepare_model_inputs_fn=lambda inputs, _: inputs["attention_mask"].bool(),
            prepare_layer_inputs_fn=_real_tokens,
            show_progress_bar=False,
        )
        return _redistributed(network, start)

    on = affordable(places, budget, experiment.options.seed, redistribute)
    return Adapted(adapted[0], functools.partial(list, on))


def affordable(
    places: Sequence[Element], budget: int, seed: int, redistribute: Callable[[Sequence[Element]], list[Element]]
) -> list[Element]:
    """What EVA makes of a uniform adapter, within the budget. Its ranks cost more where it prefers wide places. Then it
    starts again from a lower rank, or from fewer places of rank 1. Raises UserError if no place is left.
    """
    spend, cheapest = budget, min(element.width for element in places)
    while spend >= cheapest:
        uniform = uniform_ranks(places, spend, seed)
        rank = min(element.rank for element in uniform)
        start = [replace(element, settings=element.settings.at(rank)) for element in uniform]
        on = redistribute(start)
        cost = sum(element.parameters for element in on)
        if cost <= budget:
            return on
        spend = sum(element.parameters for element in start) * budget // cost  # less than this start
    raise UserError(
        f"a budget of {budget} does not pay for the ranks that EVA gives at rank 1", "leave EVA out, or give more"
    )


def _real_tokens(layer_input: Any, mask: torch.Tensor, _: str) -> torch.Tensor:
    """The inputs of a layer (tokens, in) without padding. PEFT's own function fails where a model flattens rows."""
    values = layer_input if isinstance(layer_input, torch.Tensor) else layer_input[0]
    return values.reshape(-1, values.shape[-1])[mask.reshape(-1)]


def _batches(experiment: Experiment) -> list[dict[str, Any]]:
    data = experiment.data
    count, _ = batch_count(_EVA_BATCHES, data.scoring_batch_count)
    names = ("input_ids", "attention_mask")
    return [{name: batch[name] for name in names} for batch in data.scoring_batches(count)]


def _redistributed(network: PeftModel, start: Iterable[Element]) -> list[Element]:
    """The ranks that PEFT's layers have now."""
    modules = dict(network.get_base_model().named_modules())
    found = []
    for element in start:
        layer = modules[element.module]
        rank = getattr(layer, "r", {}).get("default", 0)
        if rank:
            settings = replace(element.settings, rank=rank, alpha=layer.scaling["default"] * rank)
            found.append(replace(element, settings=settings))
    return found


if __name__ == "__main__":
    run(main)


def _peft_type(experiment: Experiment) -> str:
    task = experiment.task
    return TASKS[task.spec.task].peft_type_of(task.network.config.is_encoder_decoder)
