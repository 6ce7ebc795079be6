"""A checked request → data, model and task, ready for a trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from actions.console import note
from actions.options import TEST, TRAIN, Options
from actions.resolve import Request
from actions.run_folder import as_plain
from dataset.module import DataSettings, TextDataModule
from heterolora.adapt import Plan, adapt, plan
from heterolora.errors import UserError
from heterolora.search_space import SearchSpace
from model.checkpoint import Record, record_of
from model.load import Base, enable_gradient_checkpointing, length_limit, load_base, load_config, load_tokenizer
from model.parameters import ParameterTable, count
from model.peft_format.fit import check_modules, check_weights, put_into
from model.skeleton import skeleton
from model.task.causal_language_modeling import CausalLanguageModeling
from model.task.classification import Classification
from model.task.fine_tuning import FineTuning, Splits
from model.task.optimization import Optimization
from model.task.summarization import Summarization


@dataclass(frozen=True)
class Experiment:
    """Everything that an action works on.

    Attributes:
        options: the resolved options.
        data: the data module, with its tokenizer attached.
        task: the network and what it learns.
        untrained_head: whether its classification head is freshly made.
        parameters: how many there are, and how many of them train.
        done: optimizer steps that a resumed run starts after.
    """

    options: Options
    data: TextDataModule
    task: FineTuning
    untrained_head: bool
    parameters: ParameterTable
    done: int = 0


def build(request: Request) -> Experiment:
    """Reads configuration, data and weights, in the order in which mistakes are cheapest to find."""
    options, spec, base_source = request.options, request.spec, request.base
    config = load_config(base_source.name, spec)
    planned = plan_elements(request, config)
    notes = [*request.notes, *(planned.notes if planned else ())]
    data = TextDataModule(spec, _data_settings(options))
    data.read()
    tokenizer = load_tokenizer(base_source.name, config)
    data.attach(tokenizer, length_limit(config, tokenizer))
    for text in dict.fromkeys((*notes, *data.notes)):
        note(text)

    base = load_base(base_source, config, tokenizer, spec.task, options.precision, options.quantize)
    pl.seed_everything(options.seed, workers=True, verbose=False)
    space = None if planned is None else adapt(base.network, planned)
    if options.gradient_checkpointing:
        enable_gradient_checkpointing(base.network, space)
    record = Record(
        action=request.action,
        options=as_plain(options),
        base=base_source,
        base_sha256=base.sha256,
        lora=request.configs["lora"].to_document() if "lora" in request.configs else None,
        shortcut=request.configs["shortcut"].to_document() if "shortcut" in request.configs else None,
    )
    task = _task(request, base, space, record, data, tokenizer)
    untrained_head = base.untrained_head
    if request.adapter is not None:
        check_weights(request.adapter, base.sha256, spec.task)
        untrained_head = not put_into(request.adapter, base.network, space) and untrained_head
    if request.checkpoint is not None:
        task.take(record_of(request.checkpoint), request.checkpoint["state_dict"])
        untrained_head = False
    done = request.checkpoint["global_step"] if options.resume_training else 0
    return Experiment(options, data, task, untrained_head, count(task.network, space), done)


def plan_elements(request: Request, config: PretrainedConfig) -> Plan | None:
    """The elements of an adapted model, before any weight is read; None for a plain model.

    Args:
        request: names the family and the configurations.
        config: the configuration of the base.

    Raises:
        UserError: configurations, adapter and architecture do not fit together.
    """
    if request.adapted is None:
        return None
    family, configs = request.adapted.family, request.configs
    family.check(config)
    network = skeleton(config, request.spec.task)
    if request.adapter is not None:
        check_modules(request.adapter, network, request.base.name)
    planned = plan(network, family, configs["lora"], configs.get("shortcut"))
    if not planned.elements:
        _check_head_alone(request)
    if request.must_agree:
        given = {**configs, **request.must_agree}
        other = plan(network, family, given["lora"], given.get("shortcut"))
        # PEFT has one dropout for all elements, so a configuration beside an adapter may give more detail.
        if not (other.same_elements(planned) if request.adapter is not None else other == planned):
            raise UserError(
                f"the configuration given differs from the one inside {request.options.load}",
                "leave it out: a checkpoint or adapter contains its own configuration",
            )
    return planned


def _check_head_alone(request: Request) -> None:
    """Raises UserError unless a model without elements is meant: its head alone is trained, on the frozen base."""
    head = request.spec.task == "classification" and request.action in (TRAIN, TEST)
    if not head or any(config.sites for config in request.configs.values()):
        raise UserError("the configuration leaves no element in the model", "give at least one place a rank above 0")


def _data_settings(options: Options) -> DataSettings:
    return DataSettings(
        batch_size=options.batch_size,
        max_token_len=options.max_token_len,
        max_target_len=options.max_target_len,
        group_by_length=options.group_by_length,
        num_workers=options.num_workers,
        seed=options.seed,
        saved_path=options.dataset_saved_path,
        cache=not options.disable_dataset_cache,
    )


def _task(
    request: Request,
    base: Base,
    space: SearchSpace | None,
    record: Record,
    data: TextDataModule,
    tokenizer: PreTrainedTokenizerBase,
) -> FineTuning:
    options = request.options
    optimization = Optimization(
        optimizer=options.optimizer,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        scheduler=options.lr_scheduler,
        warmup_steps=options.warmup_steps,
        eta_min=options.eta_min,
        max_steps=options.max_steps,
        loraplus_ratio=options.loraplus_ratio,
    )
    splits = Splits(data.validation_names, data.test_names)
    common: tuple[Any, ...] = (base.network, space, request.spec, splits, optimization, record)
    if request.spec.task == "classification":
        return Classification(*common)
    if request.spec.task == "causal_language_modeling":
        return CausalLanguageModeling(*common)
    return Summarization(
        *common, tokenizer=tokenizer, max_new_tokens=options.max_new_tokens or data.limits.max_target_len
    )
