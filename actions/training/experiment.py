"""From a checked request to data, model and task, ready for a trainer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytorch_lightning as pl
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

import model.family as families
from actions.command.request import Request
from actions.request.data import notes_on_rows
from actions.run.console import is_first_process, note, say
from actions.training.limits import check_batches, check_generation, check_packing, measures_validation, with_epochs
from dataset.batching.module import TextDataModule
from dataset.batching.preview import preview
from heterolora import saliency
from heterolora.choosing.allocation import Mode, Scored, default_mode, tie_generator
from heterolora.choosing.ranks import check_time, choose
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.elements.adapt import Placement, adapt, check_blocks, placement_of
from heterolora.elements.element import check_no_experts, check_outside, check_ranks
from heterolora.elements.search_space import SearchSpace
from heterolora.search import Plan, check_budget
from model.checkpoint import Checkpoint, ModelRecord
from model.compiling import compile_blocks, uncompiled
from model.family import AdaptedName
from model.load import (
    base_dtype,
    enable_gradient_checkpointing,
    length_limit,
    load_base,
    load_config,
    load_tokenizer,
)
from model.peft_format.fit import check_adapter_weights, check_modules, put_into
from model.sharding import Sharding, blocks_of
from model.skeleton import skeleton
from model.task import class_of
from model.task.fine_tuning import FineTuning, TaskParts
from model.task.generation import Generation
from model.task.optimization import batches_within, steps_of_run
from model.trained import take
from options.actions import DYREALLOC, IMP_TEST, TEST, TRAIN
from options.every import Options, as_plain


@dataclass(frozen=True)
class Experiment:
    """What an action works on."""

    options: Options
    data: TextDataModule  # with its tokenizer attached
    task: FineTuning
    untrained_head: bool  # whether the classification head is newly initialised
    resumed: Checkpoint | None  # the checkpoint that a resumed run continues from

    @property
    def batches(self) -> int:
        """The number of training batches of an epoch, of each process."""
        per_epoch = self.task.batches_per_epoch(self.options.devices.world)
        return batches_within(per_epoch, self.options.loop.limit_train_batches)

    @property
    def steps(self) -> float:
        """The number of optimizer steps of the whole run."""
        loop, most = self.options.loop, self.options.optimization.max_steps
        return steps_of_run(self.batches, loop.accumulate_grad_batches, loop.max_epochs, most)


def build(request: Request) -> Experiment:
    """Read configuration, data and weights, in this order, so that most mistakes are found before weights are read."""
    options, spec, base_source = request.options, request.spec, request.base
    config = load_config(base_source.name, spec, options.attention)
    planned = plan_elements(request, config)
    if options.cache_frozen_prefix and planned is not None and request.action in (TRAIN, DYREALLOC):
        check_blocks(config, "--cache-frozen-prefix does", "layerdrop")
    if (sharding := sharding_of(request)) is not None:  # all processes must gather the same blocks
        check_blocks(config, f"--strategy {options.devices.strategy} does", "layerdrop")
    notes = [*request.notes, *(planned.notes if planned else ())]
    streamed = options.optimization.max_steps * options.loop.accumulate_grad_batches
    data = TextDataModule(spec, options.data, options.seed, streamed)
    tokenizer = load_tokenizer(base_source.name, config)
    positions = length_limit(config, tokenizer)
    data.attach(tokenizer, positions)
    unlike_files = spec.own or spec.choices is not None  # what the model sees is not obvious from the files
    shown = preview_of(data, request.action) if unlike_files and is_first_process() else None
    options, more = with_epochs(request.action, options, data)
    notes += more
    check_batches(request.action, options, data)
    check_generation(options, data.limits, positions)
    check_packing(data, config)
    limited = str(options.loop.limit_val_batches) != "1.0"  # 1 is one batch
    if request.action == TEST and limited and not measures_validation(data):
        notes.append("--limit-val-batches has no effect on test of this data set: it measures no validation split")
    notes += notes_on_rows(request, data)
    for text in dict.fromkeys((*notes, *data.splits.notes)):
        note(text)
    if shown is not None:
        say(shown)

    loaded = load_model(request, options, config, tokenizer, planned)
    network, space = loaded.network, loaded.space
    if options.gradient_checkpointing:
        enable_gradient_checkpointing(network, space)
    compiles = options.compile and request.action == TRAIN  # only training runs compiled blocks
    if compiles:
        compile_blocks(blocks_of(network, space))
    parts = TaskParts(
        network=network,
        space=space,
        spec=spec,
        validation_names=data.validation_names,
        test_names=data.test_names,
        optimization=options.optimization,
        record=loaded.record,
        batches_per_epoch=data.train_batches_per_epoch,
        sharding=sharding,
        class_weights=_class_weights(options, data),
        metric=options.run.metric,
        generation=Generation(tokenizer, options.max_new_tokens or data.limits.max_target_len, options.num_beams),
        uncompiled=uncompiled if compiles else nullcontext,
    )
    return Experiment(options, data, class_of(spec)(parts), loaded.untrained_head, request.resumed)


def search_plan(options: Options, mode: Mode) -> Plan:
    """What the search of `train-dyrealloc` does. Only a budget that shrinks has steps between its decisions."""
    given, heuristic = options.reallocation, present(options.scoring.importance_test_name)
    ends = (given.shrink_start, given.shrink_end)
    units = given.shrink_units if given.shrinks else "element"
    return Plan(given.budget, given.budget_schedule, heuristic, *ends, seed=options.seed, mode=mode, units=units)


@dataclass(frozen=True)
class Loaded:
    """A model with its trained weights."""

    network: PreTrainedModel
    space: SearchSpace | None  # None for a plain network
    record: ModelRecord
    untrained_head: bool


def load_model(
    request: Request,
    options: Options,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    planned: Placement | None,
) -> Loaded:
    """Load the base, put the elements into it, and load trained weights. It is not sharded yet."""
    base = load_base(
        request.base,
        config,
        tokenizer,
        request.spec.task,
        options.devices.precision,
        options.quantize,
        sharded=sharding_of(request) is not None,
    )
    pl.seed_everything(options.seed, workers=True, verbose=False)
    space = None if planned is None else adapt(base.network, planned)
    record = ModelRecord(request.action, as_plain(options), request.base, base.sha256, request.configs)
    has_head = put_weights(request, record, base.network, space)
    return Loaded(base.network, space, record, base.untrained_head and not has_head)


def _class_weights(options: Options, data: TextDataModule) -> tuple[float, ...]:
    """What a row of each class counts for --class-weights balanced: the mean size of a class through its own."""
    if options.optimization.class_weights != "balanced" or not data.spec.single_label:
        return ()
    counts = np.bincount(data.splits.train[data.spec.label][:], minlength=data.spec.num_labels)
    return tuple(float(counts.sum() / (len(counts) * max(1, count))) for count in counts)


def sharding_of(request: Request) -> Sharding | None:
    """How the frozen base, or a plain model, is divided over processes. None if it is not."""
    devices = request.options.devices
    if devices.shards is None:
        return None
    return Sharding(devices.shards, base_dtype(devices.precision), request.options.quantize is not None)


def preview_of(data: TextDataModule, action: str) -> str:
    """What was understood of the data. Encodes all rows of the action, so that a mistake in one is found now."""
    if action == TEST:
        data.setup("test")
        name, rows = next(iter(data.splits.test.items()))
        return preview(data, rows, name)
    if action != IMP_TEST:
        data.setup()
    return preview(data, data.splits.train, "training")


def put_weights(request: Request, own: ModelRecord, network: PreTrainedModel, space: SearchSpace | None) -> bool:
    """Load the weights of the request's checkpoint or adapter, if any. Returns whether they include the head.

    `own` is the identity of the network. Raises UserError if the weights do not fit it.
    """
    if request.checkpoint is not None:
        take(network, space, own, request.checkpoint)
        return True
    if request.adapter is not None:
        check_adapter_weights(request.adapter, own.base_sha256, request.spec.task)
        return put_into(request.adapter, network, present(space))
    return False


def _check_family(adapted: AdaptedName, config: PretrainedConfig) -> None:
    """Raise `UserError` unless the family fits the base. The error names the family that does, if there is one."""
    try:
        adapted.family.check(config)
    except UserError as error:
        fitting = families.for_model_type(config.model_type)
        if fitting is None:
            raise
        raise UserError(
            error.found, f"give --model {fitting.name}_lora{'_ags' if adapted.shortcuts else ''}; {error.expected}"
        ) from None


def plan_elements(request: Request, config: PretrainedConfig) -> Placement | None:
    """The elements of an adapted model on a base with this configuration, before any weight is read.

    Returns None for a plain model. Raises UserError if configurations, adapter and architecture do not fit together, or
    the budget of a search does not fit the elements.
    """
    if request.adapted is None:
        return None
    family, configs = request.adapted.family, request.configs
    _check_family(request.adapted, config)
    network = skeleton(config, request.spec.task)
    if request.adapter is not None:
        check_modules(request.adapter, network, request.base.name)
    planned = placement_of(network, family, configs["lora"], configs.get("shortcut"))
    if request.recorded is None and request.adapter is None:
        check_ranks(planned.elements)
    # Without elements only the head of a classifier is trained, on the frozen base.
    head_alone = request.spec.classifies and request.action in (TRAIN, TEST)
    if not planned.elements and (not head_alone or any(one.sites for one in configs.values())):
        raise UserError("the configuration leaves no element in the model", "give at least one place a rank above 0")
    if request.options.lora_init != "kaiming":
        found = f"--lora-init {request.options.lora_init} cannot start LoRA on"
        check_outside(planned.elements, ("lm_head",), found, "leave it out, or give --lora-init kaiming")
    if request.options.lora_init == "activation":
        found = "--lora-init activation cannot start LoRA on"
        check_no_experts(planned.elements, found, "give --lora-init gradient, or another one")
    if request.action in (IMP_TEST, DYREALLOC):
        if (test := request.options.scoring.importance_test_name) is not None:
            saliency.get(test).check(planned.elements)
        options = request.options.reallocation
        mode = options.dyrealloc_ags_mode or default_mode(request.adapted.shortcuts)
        if request.action == DYREALLOC and options.shrinks:
            ranks = [each.single(index) for each in planned.elements for index in range(each.rank)]
            check_budget(search_plan(request.options, mode), ranks if options.by_rank else planned.elements)
        elif options.budget.unit == "time":  # which is measured on the loaded model
            check_time(mode)
        else:
            choose([Scored(element, 0.0) for element in planned.elements], options.budget, mode, tie_generator(0, 0))
    if request.must_agree:
        given = {**configs, **request.must_agree}
        other = placement_of(network, family, given["lora"], given.get("shortcut"))
        # PEFT has one dropout for all elements, so a configuration beside an adapter may give more detail.
        if not (other.same_elements(planned) if request.adapter is not None else other == planned):
            loaded = request.options.load if request.checkpoint is None else request.checkpoint.path
            raise UserError(
                f"the configuration given differs from the one inside {loaded}",
                "leave it out: a checkpoint or adapter contains its own configuration",
            )
    return planned
