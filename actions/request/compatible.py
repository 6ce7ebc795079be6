"""Options that do not fit each other, the data set, the model or its files. Found before anything is loaded."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Collection
from typing import TYPE_CHECKING

from actions.command.configurations import UNIFORM
from actions.training.halving import check_optuna
from dataset.spec import DatasetSpec
from heterolora import saliency
from heterolora.common.errors import UserError, nearest
from heterolora.common.files import check_writable
from heterolora.elements.element import Kind
from model.family import AdaptedName
from options.actions import DYREALLOC, TRAIN
from options.declare import flag_of
from options.devices import FSDP
from options.every import Options, declared
from options.optimization import AUTO, RATES, RATES_OF_PLAIN

if TYPE_CHECKING:
    from model.checkpoint import BaseSource


def check_options(
    action: str, options: Options, spec: DatasetSpec, adapted: AdaptedName | None, given: Collection[Kind]
) -> None:
    """Raise UserError if options exclude each other, or do not fit the data set or the kind of model.

    `given`: the kinds of configurations on the command line.
    """
    if adapted is not None:
        adapted.family.check_task(spec.task)
    if options.loop.max_epochs == -1 and options.optimization.max_steps == -1:
        raise UserError("neither --max-epochs nor --max-steps ends the run", "give one of them")
    chosen, measured = options.run.metric, (*spec.metrics, "loss")
    if action in (TRAIN, DYREALLOC) and chosen is not None and chosen not in measured:
        raise UserError(f"--metric '{chosen}' is not measured on '{spec.name}'", nearest(chosen, measured))
    update = options.optimization
    lowest = update.learning_rate
    if lowest == AUTO:
        lowest = min(RATES_OF_PLAIN if adapted is None else RATES)
    if update.lr_scheduler == "cosine_annealing" and update.eta_min > lowest:
        raise UserError(
            f"--eta-min {update.eta_min:g} is above --learning-rate {lowest:g}",
            f"give at most {lowest:g}, the rate that cosine_annealing starts from",
        )
    used = {name: info.used_by(action) for name, info in declared().items()}  # an options file may hold others too
    if options.data.packing and used["packing"] and options.attention not in (None, "sdpa"):
        raise UserError(f"--packing does not work with --attention {options.attention}", "use --attention sdpa")
    if options.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("--attention flash_attention_2 needs flash-attn", "pip install flash-attn, or use sdpa")
    if options.compile and used["compile"]:
        _check_compile(action, options)
    if used["logger"] and (logger := options.run.logger) in ("wandb", "mlflow", "trackio"):
        _check_installed(f"--logger {logger}", logger, "use tensorboard or csv")
    folder = options.cache_folder if options.cache_frozen_prefix and used["cache_folder"] else None
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"--cache-folder '{folder}' is no folder", "give an existing folder, such as /tmp")
        check_writable(folder, "give another --cache-folder")
    if options.run.lm_eval is not None and used["lm_eval"]:
        if spec.task == "classification":
            raise UserError("--lm-eval measures language models, and this is a classifier", "leave it out")
        if options.devices.num_devices * options.devices.num_nodes > 1:
            raise UserError("--lm-eval runs in one process", "give --num-devices 1 --num-nodes 1")
        _check_installed("--lm-eval", "lm_eval", "leave it out")
    if update.learning_rate == AUTO:
        _check_auto(action, options, plain=adapted is None)
    if adapted is None:
        unusable = [f"--{kind}-config is given" for kind in given]
        unusable += [f"{flag_of(name)} is given" for name in UNIFORM if getattr(options, name) is not None]
        if options.quantize is not None:
            unusable.append(f"--quantize {options.quantize} is given")
        if (ratio := options.optimization.loraplus_ratio) != 1:
            unusable.append(f"--loraplus-ratio is {ratio:g}")
        if options.lora_init != "kaiming":
            unusable.append(f"--lora-init is {options.lora_init}")
        if unusable:
            raise UserError(
                f"{unusable[0]}, but '{options.model}' is a plain model without LoRA",
                "leave it out, or use a model such as opt_lora",
            )
    elif "shortcut" in given and not adapted.shortcuts:
        raise UserError(
            f"--shortcut-config is given, but '{options.model}' has no shortcuts",
            f"leave it out, or use a model such as {options.model}_ags",
        )


def _check_auto(action: str, options: Options, plain: bool) -> None:
    """Raise UserError if trials cannot choose the learning rate."""
    if action == DYREALLOC:
        found = "--learning-rate auto cannot be used with train-dyrealloc: its trials would not reallocate"
        raise UserError(found, "give a number, such as the one that auto finds with train")
    if action == TRAIN:
        if options.optimization.optimizer == "sgd":
            raise UserError("--learning-rate auto tries rates for adam and adamw, not for sgd", "give a number")
        if plain and options.devices.strategy == FSDP:  # after a trial the weights are put back, which are parts then
            raise UserError(
                "--learning-rate auto cannot be used with --strategy fsdp of a plain model", "give a number"
            )
        check_optuna("--learning-rate auto")


def _check_compile(action: str, options: Options) -> None:
    if action == DYREALLOC:
        found = "--compile cannot be used with train-dyrealloc: each reallocation would compile its blocks again"
        raise UserError(found, "leave it out, or train the result with train")
    others = {
        "--cache-frozen-prefix": options.cache_frozen_prefix,
        "--gradient-checkpointing": options.gradient_checkpointing,
        f"--quantize {options.quantize}": options.quantize is not None,
        "--strategy fsdp": options.devices.strategy == FSDP,
    }
    for other, given in others.items():
        if given:
            raise UserError(f"--compile cannot be used with {other}", "leave one of them out")
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("--compile needs a C++ compiler", "install g++, or leave it out")


def _check_installed(option: str, package: str, otherwise: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{option} needs {package}", f"pip install {package}, or {otherwise}")


def _check_quantizable(action: str, options: Options, base: BaseSource) -> None:
    if not base.pretrained or base.state_file is not None:
        raise UserError(
            f"--quantize {options.quantize} needs pretrained weights in the library's own files",
            "give --load with a hub name or folder, without --random-init",
        )
    test = options.scoring.importance_test_name
    if declared()["importance_test_name"].used_by(action) and saliency.get(test).needs_base_weights:
        raise UserError(
            f"{test} cannot be used with --quantize: it needs the weights of the base",
            "use another --importance-test-name, such as grad_norm",
        )


def _check_sharding(options: Options, adapted: AdaptedName | None, base: BaseSource) -> None:
    devices, sharded = options.devices, "--strategy fsdp"
    if devices.shards == 1:
        raise UserError(
            f"{sharded} shards within a node, and --num-devices is 1",
            f"give --shard-size {devices.world} to shard over the nodes, or more devices",
        )
    if devices.world % devices.shards:
        sizes = [str(size) for size in range(2, devices.world + 1) if devices.world % size == 0]
        raise UserError(
            f"--shard-size {devices.shards} does not divide the {devices.world} devices", f"give {' or '.join(sizes)}"
        )
    if adapted is None and options.devices.precision in ("64", "16-mixed"):
        raise UserError(
            f"{sharded} cannot train a plain model with --precision {options.devices.precision}",
            "use 32, bf16-mixed, or a -true kind",
        )
    if options.quantize == "int8":
        raise UserError(
            f"{sharded} cannot be used with --quantize int8, whose scales are no parameters", "use --quantize nf4"
        )
    if options.cache_frozen_prefix:  # a row may be in the cache of one process only, and all gather the blocks together
        raise UserError(f"{sharded} cannot be used with --cache-frozen-prefix", "leave one of them out")
    if adapted is not None and (not base.pretrained or base.state_file is not None):
        raise UserError(
            f"{sharded} needs pretrained weights in the library's own files, of which each process reads its share",
            "give --load with a hub name or folder, without --random-init",
        )


def check_base(action: str, options: Options, adapted: AdaptedName | None, base: BaseSource) -> None:
    """Raise UserError if the base cannot be loaded as the options ask."""
    if options.quantize is not None:
        _check_quantizable(action, options, base)
    if options.devices.shards is not None:
        _check_sharding(options, adapted, base)
