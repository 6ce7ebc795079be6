"""Options that do not fit each other, the data set, the model or its files. Found before anything is loaded.

A rule looks at a request and raises UserError. A new one is a function and a place in `_RULES`, or in `_STRATEGIES` for
a way to use several devices.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from actions.command.configurations import UNIFORM, Configs
from actions.command.request import Request
from heterolora import saliency
from heterolora.common.errors import UserError, nearest
from heterolora.common.files import check_writable
from options.actions import DYREALLOC, TRAINING
from options.declare import flag_of
from options.devices import FSDP
from options.every import declared
from options.optimization import AUTO, RATES, RATES_OF_PLAIN

if TYPE_CHECKING:
    from model.checkpoint import BaseSource

_LIBRARY_FILES = "needs pretrained weights in the library's own files"
_WITH_WEIGHTS = "give --load with a hub name or folder, without --random-init"

# (option, value) -> the package that it needs, and what does without it.
_PACKAGES: Mapping[tuple[str, str | None], tuple[str, str]] = {
    ("attention", "flash_attention_2"): ("flash-attn", "use sdpa"),
    **{("logger", name): (name, "use tensorboard or csv") for name in ("wandb", "mlflow", "trackio")},
}


def check(request: Request, given: Configs) -> None:
    """Raise UserError if options exclude each other, or do not fit the data set, the model or its base.

    `given`: the configurations that the command gives.
    """
    _check_elements(request, given)
    for rule in (*_RULES, *_STRATEGIES.get(request.options.devices.strategy, ())):
        rule(request)


def check_optuna(what: str) -> None:
    """Raise UserError if Optuna is missing."""
    _refuse(not _is_installed("optuna"), f"{what} needs the package optuna", "pip install optuna")


def _refuse(when: bool, found: str, right: str) -> None:
    if when:
        raise UserError(found, right)


def _is_used(option: str, request: Request) -> bool:
    """Whether the action uses the option. An options file may hold others too."""
    return declared()[option].used_by(request.action)


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package.replace("-", "_")) is not None


def _check_installed(option: str, package: str, otherwise: str) -> None:
    _refuse(not _is_installed(package), f"{option} needs {package}", f"pip install {package}, or {otherwise}")


def _has_library_files(base: BaseSource) -> bool:
    return base.pretrained and base.state_file is None


# ---- model and data set


def _check_elements(request: Request, given: Configs) -> None:
    """Raise UserError for settings of elements that the model does not have."""
    options, adapted, ratio = request.options, request.adapted, request.options.optimization.loraplus_ratio
    if adapted is not None:
        _refuse(
            "shortcut" in given and not adapted.shortcuts,
            f"--shortcut-config is given, but '{options.model}' has no shortcuts",
            f"leave it out, or use a model such as {options.model}_ags",
        )
        return
    unusable = [
        *(f"--{kind}-config is given" for kind in given),
        *(f"{flag_of(name)} is given" for name in UNIFORM if getattr(options, name) is not None),
        *([] if options.quantize is None else [f"--quantize {options.quantize} is given"]),
        *([] if ratio == 1 else [f"--loraplus-ratio is {ratio:g}"]),
        *([] if options.lora_init == "kaiming" else [f"--lora-init is {options.lora_init}"]),
    ]
    if unusable:
        raise UserError(
            f"{unusable[0]}, but '{options.model}' is a plain model without LoRA",
            "leave it out, or use a model such as opt_lora",
        )


def _check_task(request: Request) -> None:
    if request.adapted is not None:
        request.adapted.family.check_task(request.spec.task)


def _check_metrics(request: Request) -> None:
    options, spec, chosen = request.options, request.spec, request.options.run.metric
    measured = (*spec.metrics, "loss")
    if request.action in TRAINING and chosen is not None and chosen not in measured:
        raise UserError(f"--metric '{chosen}' is not measured on '{spec.name}'", nearest(chosen, measured))
    if options.run.lm_eval is not None and _is_used("lm_eval", request):
        classifies, several = spec.task == "classification", options.devices.world > 1
        _refuse(classifies, "--lm-eval measures language models, and this is a classifier", "leave it out")
        _refuse(several, "--lm-eval runs in one process", "give --num-devices 1 --num-nodes 1")
        _check_installed("--lm-eval", "lm_eval", "leave it out")


# ---- training


def _check_schedule(request: Request) -> None:
    loop, update = request.options.loop, request.options.optimization
    endless = loop.max_epochs == -1 and update.max_steps == -1
    _refuse(endless, "neither --max-epochs nor --max-steps ends the run", "give one of them")
    lowest = update.learning_rate
    if lowest == AUTO:
        lowest = min(RATES_OF_PLAIN if request.adapted is None else RATES)
    _refuse(
        update.lr_scheduler == "cosine_annealing" and update.eta_min > lowest,
        f"--eta-min {update.eta_min:g} is above --learning-rate {lowest:g}",
        f"give at most {lowest:g}, the rate that cosine_annealing starts from",
    )


def _check_trials(request: Request) -> None:
    """Raise UserError if trials cannot choose the learning rate."""
    options, auto = request.options, "--learning-rate auto"
    if options.optimization.learning_rate != AUTO or request.action not in TRAINING:
        return
    _refuse(
        request.action == DYREALLOC,
        f"{auto} cannot be used with train-dyrealloc: its trials would not reallocate",
        "give a number, such as the one that auto finds with train",
    )
    by_sgd = options.optimization.optimizer == "sgd"
    _refuse(by_sgd, f"{auto} tries rates for adam and adamw, not for sgd", "give a number")
    # After a trial the weights are put back, which are parts then.
    in_parts = request.adapted is None and options.devices.strategy == FSDP
    _refuse(in_parts, f"{auto} cannot be used with --strategy fsdp of a plain model", "give a number")
    check_optuna(auto)


# ---- speed and memory


def _check_speed(request: Request) -> None:
    options = request.options
    if options.data.packing and _is_used("packing", request) and options.attention not in (None, "sdpa"):
        raise UserError(f"--packing does not work with --attention {options.attention}", "use --attention sdpa")
    if options.compile and _is_used("compile", request):
        _check_compile(request)
    folder = options.cache_folder
    if folder is not None and options.cache_frozen_prefix and _is_used("cache_folder", request):
        exists = folder.is_dir()
        _refuse(not exists, f"--cache-folder '{folder}' is no folder", "give an existing folder, such as /tmp")
        check_writable(folder, "give another --cache-folder")


def _check_compile(request: Request) -> None:
    options = request.options
    _refuse(
        request.action == DYREALLOC,
        "--compile cannot be used with train-dyrealloc: each reallocation would compile its blocks again",
        "leave it out, or train the result with train",
    )
    others = {
        "--cache-frozen-prefix": options.cache_frozen_prefix,
        "--gradient-checkpointing": options.gradient_checkpointing,
        f"--quantize {options.quantize}": options.quantize is not None,
        "--strategy fsdp": options.devices.strategy == FSDP,
    }
    for other, is_given in others.items():
        _refuse(is_given, f"--compile cannot be used with {other}", "leave one of them out")
    has_compiler = any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++")))
    _refuse(not has_compiler, "--compile needs a C++ compiler", "install g++, or leave it out")


def _check_packages(request: Request) -> None:
    for name, value in {"attention": request.options.attention, "logger": request.options.run.logger}.items():
        if (name, value) in _PACKAGES and _is_used(name, request):
            _check_installed(f"{flag_of(name)} {value}", *_PACKAGES[name, value])


def _check_quantize(request: Request) -> None:
    options, test = request.options, request.options.scoring.importance_test_name
    if options.quantize is None:
        return
    _refuse(not _has_library_files(request.base), f"--quantize {options.quantize} {_LIBRARY_FILES}", _WITH_WEIGHTS)
    _refuse(
        _is_used("importance_test_name", request) and saliency.get(test).needs_base_weights,
        f"{test} cannot be used with --quantize: it needs the weights of the base",
        "use another --importance-test-name, such as grad_norm",
    )


# ---- several devices


def _check_fsdp(request: Request) -> None:
    options, devices, sharded = request.options, request.options.devices, "--strategy fsdp"
    if devices.shards is None:
        return
    _refuse(
        devices.shards == 1,
        f"{sharded} shards within a node, and --num-devices is 1",
        f"give --shard-size {devices.world} to shard over the nodes, or more devices",
    )
    sizes = [str(size) for size in range(2, devices.world + 1) if devices.world % size == 0]
    _refuse(
        devices.world % devices.shards > 0,
        f"--shard-size {devices.shards} does not divide the {devices.world} devices",
        f"give {' or '.join(sizes)}",
    )
    _refuse(
        request.adapted is None and devices.precision in ("64", "16-mixed"),
        f"{sharded} cannot train a plain model with --precision {devices.precision}",
        "use 32, bf16-mixed, or a -true kind",
    )
    _refuse(
        options.quantize == "int8",
        f"{sharded} cannot be used with --quantize int8, whose scales are no parameters",
        "use --quantize nf4",
    )
    # A row may be in the cache of one process only, and all gather the blocks together.
    cached = options.cache_frozen_prefix
    _refuse(cached, f"{sharded} cannot be used with --cache-frozen-prefix", "leave one of them out")
    _refuse(
        request.adapted is not None and not _has_library_files(request.base),
        f"{sharded} {_LIBRARY_FILES}, of which each process reads its share",
        _WITH_WEIGHTS,
    )


_RULES: tuple[Callable[[Request], None], ...] = (
    _check_task,
    _check_schedule,
    _check_metrics,
    _check_trials,
    _check_speed,
    _check_packages,
    _check_quantize,
)
#: What else holds for a `--strategy`.
_STRATEGIES: Mapping[str, tuple[Callable[[Request], None], ...]] = {FSDP: (_check_fsdp,)}
