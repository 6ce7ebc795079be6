"""Options that do not fit each other, the data set, the model or its base. Found before anything is loaded.

A rule raises UserError for a request that it refuses. A new one has a place in `_RULES`, or in `_STRATEGIES` if it is
about one way to use several devices.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Collection

from actions.command.configurations import UNIFORM
from actions.command.request import Request
from actions.request.predicting import check_predicting
from heterolora import saliency
from heterolora.common.checks import present
from heterolora.common.errors import UserError, nearest
from heterolora.common.files import check_writable
from heterolora.elements.element import Kind
from model.family import PAGE
from options.actions import DYREALLOC, IMP_TEST, TRAINING
from options.declare import flag_of
from options.every import declared
from options.optimization import AUTO, RATES, RATES_OF_PLAIN

Rule = Callable[[Request], None]


def check(request: Request, given: Collection[Kind]) -> None:
    """Raise UserError if options exclude each other, or do not fit the data set, the model or its base.

    `given`: the kinds of elements of which the command gives a configuration.
    """
    _elements(request, given)
    for rule in _RULES:
        rule(request)


def check_family(request: Request) -> None:
    """Raise UserError if the family does not do the task, or if options need a table of the architecture.

    Places that were found in the network of the base are no such table.
    """
    options, family = request.options, present(request.adapted).family
    family.check_task(request.spec.task)
    if family.has_paths:
        return
    test = options.scoring.importance_test_name
    found = f"needs a table of the architecture, and '{family.name}' has none"
    why = found if family.found else f"needs a linear layer for each projection, which {family.name} has not"
    if _is_used("importance_test_name", request) and saliency.get(present(test)).needs_table:
        advice = f"use another --importance-test-name, such as grad_norm, or see {PAGE}"
        raise UserError(f"{test} {why}", advice)
    advice = f"see {PAGE} for how to add one"
    if family.found and options.cache_frozen_prefix and _is_used("cache_frozen_prefix", request):
        raise UserError(f"--cache-frozen-prefix {found}", f"leave it out, or {advice}")


def _check_installed(option: str, package: str, otherwise: str) -> None:
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        raise UserError(f"{option} needs {package}", f"pip install {package}, or {otherwise}")


def _is_used(option: str, request: Request) -> bool:
    """Whether the action uses the option. An options file may hold others too."""
    return declared()[option].used_by(request.action)


def _check_own_files(option: str, request: Request, why: str = "") -> None:
    if not request.base.pretrained or request.base.state_file is not None:
        found = f"{option} needs pretrained weights in the library's own files{why}"
        raise UserError(found, "give --load with a hub name or folder, without --random-init")


# ---- model and data set


def _elements(request: Request, given: Collection[Kind]) -> None:
    """Settings of elements that the model does not have."""
    options, ratio = request.options, request.options.optimization.loraplus_ratio
    if request.adapted is not None:
        if "shortcut" in given and not request.adapted.shortcuts:
            found = f"--shortcut-config is given, but '{options.model}' has no shortcuts"
            raise UserError(found, f"leave it out, or use a model such as {options.model}_ags")
        return
    unusable = [f"--{kind}-config is given" for kind in given]
    unusable += [f"{flag_of(name)} is given" for name in UNIFORM if getattr(options, name) is not None]
    unusable += [] if options.quantize is None else [f"--quantize {options.quantize} is given"]
    unusable += [] if ratio == 1 else [f"--loraplus-ratio is {ratio:g}"]
    unusable += [] if options.lora_init == "kaiming" else [f"--lora-init is {options.lora_init}"]
    if unusable:
        found = f"{unusable[0]}, but '{options.model}' is a plain model without LoRA"
        raise UserError(found, "leave it out, or use --model lora")


def _metrics(request: Request) -> None:
    options, spec, chosen = request.options, request.spec, request.options.run.metric
    measured = (*spec.metrics, "loss")
    if request.action in TRAINING and chosen is not None and chosen not in measured:
        raise UserError(f"--metric '{chosen}' is not measured on '{spec.name}'", nearest(chosen, measured))
    if options.run.lm_eval is None or not _is_used("lm_eval", request):
        return
    if spec.classifies:
        raise UserError("--lm-eval measures language models, and this is a classifier", "leave it out")
    if options.devices.world > 1:
        raise UserError("--lm-eval runs in one process", "give --num-devices 1 --num-nodes 1")
    _check_installed("--lm-eval", "lm_eval", "leave it out")


# ---- training


def _schedule(request: Request) -> None:
    loop, update = request.options.loop, request.options.optimization
    if loop.max_epochs == -1 and update.max_steps == -1:
        raise UserError("neither --max-epochs nor --max-steps ends the run", "give one of them")
    tried = RATES_OF_PLAIN if request.adapted is None else RATES
    lowest = min(tried) if update.learning_rate == AUTO else update.rate
    if update.lr_scheduler == "cosine_annealing" and update.eta_min > lowest:
        found = f"--eta-min {update.eta_min:g} is above --learning-rate {lowest:g}"
        raise UserError(found, f"give at most {lowest:g}, the rate that cosine_annealing starts from")


def _trials(request: Request) -> None:
    """Trials that cannot choose the learning rate."""
    options, auto = request.options, "--learning-rate auto"
    if options.optimization.learning_rate != AUTO or request.action not in TRAINING:
        return
    if request.action == DYREALLOC:
        found = f"{auto} cannot be used with train-dyrealloc: its trials would not reallocate"
        raise UserError(found, "give a number, such as the one that auto finds with train")
    if options.optimization.optimizer == "sgd":
        raise UserError(f"{auto} tries rates for adam and adamw, not for sgd", "give a number")
    if request.adapted is None and options.devices.divides:  # the weights to put back after a trial are parts
        found = f"{auto} cannot be used with --strategy {options.devices.strategy} of a plain model"
        raise UserError(found, "give a number")


def _shrinking(request: Request) -> None:
    options = request.options.reallocation
    if request.action != DYREALLOC:
        return
    if not options.shrinks:
        if options.shrink_tolerance is not None:
            found = "--shrink-tolerance is given with --budget-schedule fixed"
            raise UserError(found, "give --budget-schedule shrink, or a budget")
        return
    if options.shrink_start >= options.shrink_end:
        found = f"--shrink-start {options.shrink_start:g} is not before --shrink-end {options.shrink_end:g}"
        raise UserError(found, "give a smaller --shrink-start")
    if options.shrink_tolerance is not None and options.by_rank:
        found = "--shrink-tolerance cannot be used with --shrink-units rank: a rank that is off cannot come back"
        raise UserError(found, "give a budget, or --shrink-units element")
    if options.budget_time is not None:
        found = "--budget-time cannot be used with --budget-schedule shrink: it is not spent in order of score"
        raise UserError(found, "give --turn-on-percentile or --budget-parameters")


# ---- speed and memory


def _speed(request: Request) -> None:
    options, folder = request.options, request.options.cache_folder
    if options.data.packing and _is_used("packing", request) and options.attention not in (None, "sdpa"):
        raise UserError(f"--packing does not work with --attention {options.attention}", "use --attention sdpa")
    if options.attention == "flash_attention_2":
        _check_installed("--attention flash_attention_2", "flash-attn", "use sdpa")
    if _is_used("logger", request) and (logger := options.run.logger) in ("wandb", "mlflow", "trackio"):
        _check_installed(f"--logger {logger}", logger, "use tensorboard or csv")
    if folder is not None and options.cache_frozen_prefix and _is_used("cache_folder", request):
        if not folder.is_dir():
            raise UserError(f"--cache-folder '{folder}' is no folder", "give an existing folder, such as /tmp")
        check_writable(folder, "give another --cache-folder")


def _hub_kernels(request: Request) -> None:
    options = request.options
    if not options.hub_kernels or not _is_used("hub_kernels", request):
        return
    if request.action in (IMP_TEST, DYREALLOC):
        found = f"{request.action} does not use --hub-kernels: no test on a GPU has shown that scores are the same"
        raise UserError(found, "leave it out, and give it to train")
    _check_installed("--hub-kernels", "kernels", "leave it out")
    others = {
        "--compile": options.compile and _is_used("compile", request),
        f"--strategy {options.devices.strategy}": options.devices.shards is not None,
    }
    for other in (name for name, is_given in others.items() if is_given):
        raise UserError(f"--hub-kernels was not tested with {other}", "leave one of them out")


def _compile(request: Request) -> None:
    options = request.options
    if not options.compile or not _is_used("compile", request):
        return
    if request.action == DYREALLOC:
        found = "--compile cannot be used with train-dyrealloc: each reallocation would compile its blocks again"
        raise UserError(found, "leave it out, or train the result with train")
    others = {
        "--cache-frozen-prefix": options.cache_frozen_prefix,
        "--gradient-checkpointing": options.gradient_checkpointing,
        f"--quantize {options.quantize}": options.quantize is not None,
        f"--strategy {options.devices.strategy}": options.devices.divides,
    }
    for other in (name for name, is_given in others.items() if is_given):
        raise UserError(f"--compile cannot be used with {other}", "leave one of them out")
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("--compile needs a C++ compiler", "install g++, or leave it out")


def _quantize(request: Request) -> None:
    quantize, test = request.options.quantize, request.options.scoring.importance_test_name
    if quantize is None:
        return
    _check_own_files(f"--quantize {quantize}", request)
    if _is_used("importance_test_name", request) and saliency.get(present(test)).needs_base_weights:
        found = f"{test} cannot be used with --quantize: it needs the weights of the base"
        raise UserError(found, "use another --importance-test-name, such as grad_norm")


def _streaming(request: Request) -> None:
    """Training on a stream, of which the number of rows is not known."""
    options = request.options
    if not options.data.streaming or request.action not in TRAINING:
        return
    if options.optimization.max_steps == -1:
        raise UserError("--streaming needs --max-steps: the number of rows is not known", "give --max-steps")
    others = {
        "--max-epochs": options.loop.max_epochs not in (None, -1),
        "--limit-train-batches": str(options.loop.limit_train_batches) != "1.0",  # 1 is one batch
        "--cache-frozen-prefix": options.cache_frozen_prefix,
    }
    for other in (name for name, is_given in others.items() if is_given):
        raise UserError(f"--streaming cannot be used with {other}", "leave one of them out: --max-steps ends the run")


# ---- several devices


def _divided(request: Request) -> None:
    """A strategy in which each device holds a part of the base."""
    options, devices = request.options, request.options.devices
    sharded = f"--strategy {devices.strategy}"
    if devices.shards is None:
        return
    if devices.shards == 1:
        found = f"{sharded} shards within a node, and --num-devices is 1"
        raise UserError(found, f"give --shard-size {devices.world} to shard over the nodes, or more devices")
    if devices.world % devices.shards:
        sizes = [str(size) for size in range(2, devices.world + 1) if devices.world % size == 0]
        found = f"--shard-size {devices.shards} does not divide the {devices.world} devices"
        raise UserError(found, f"give {' or '.join(sizes)}")
    if request.adapted is None and devices.precision in ("64", "16-mixed"):
        found = f"{sharded} cannot train a plain model with --precision {devices.precision}"
        raise UserError(found, "use 32, bf16-mixed, or a -true kind")
    if options.quantize == "int8":
        found = f"{sharded} cannot be used with --quantize int8, whose scales are no parameters"
        raise UserError(found, "use --quantize nf4")
    if options.cache_frozen_prefix:  # a row may be in the cache of one process only, and all gather the blocks together
        raise UserError(f"{sharded} cannot be used with --cache-frozen-prefix", "leave one of them out")
    if request.adapted is not None:
        _check_own_files(sharded, request, ", of which each process reads its share")


_RULES: tuple[Rule, ...] = (
    _streaming, _schedule, _metrics, _trials, _shrinking, _speed, _hub_kernels, _compile, _quantize, _divided,
    check_predicting,
)  # fmt: skip
