"""Every option of every action: a field each, in groups of what one consumer takes."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dataset.option import (
    OptionInfo,
    above,
    at_least,
    byte_size,
    count_or_share,
    group,
    idle_with,
    idle_without,
    option,
    options_of,
    positive_or_unlimited,
    seed_range,
)
from dataset.settings import DataOptions, OwnDataOptions
from dataset.spec import Task
from model.reallocation.options import ReallocationOptions, ScoringOptions
from model.task.optimization import Optimization

TRAIN, TEST, IMP_TEST, DYREALLOC = "train", "test", "imp-test", "train-dyrealloc"

ACTIONS: dict[str, str] = {
    TRAIN: "fine-tune a model, plain or with LoRA",
    TEST: "measure a model or a checkpoint on the test split",
    IMP_TEST: "score the elements of a model before training",
    DYREALLOC: "fine-tune and reallocate the elements during training",
}

_TRAINING = (TRAIN, DYREALLOC)
_MEASURING = (*_TRAINING, TEST)


FSDP = "fsdp"
_NO_DEEPSPEED = "it replaces the optimizer and the reduction of gradients, which switch with the elements here"


def _names_a_folder(value: str) -> str | None:
    return None if Path(value).name not in ("", "..") else "a name, such as rte-rank8"


def _one_strategy(run: Mapping[str, Any]) -> str | None:
    if run["num_devices"] * run["num_nodes"] == 1:
        return "with one device"
    if run["strategy"] == FSDP:
        return None
    if run["action"] not in _TRAINING:
        return f"on {run['action']}"
    return f"with --model {run['model']}, which is trained in the same way by all but fsdp" if run["adapted"] else None


def _not_sharded(run: Mapping[str, Any]) -> str | None:
    if run["num_devices"] * run["num_nodes"] == 1:
        return "with one device"
    return idle_without("strategy", FSDP)(run)


def _weights_are_known(run: Mapping[str, Any]) -> str | None:
    if run["load"] is None:
        return "without --load" if run["adapted"] else None
    return None if run["load_type"] == "hf" else f"with --load-type {run['load_type']}"


def _no_random_numbers(run: Mapping[str, Any]) -> str | None:
    if run["action"] != TEST:
        return None
    complete = run["load_type"] == "pl" or (run["pretrained"] and run["task"] != "classification")
    return "on test: no weight is random" if complete else None


def _trained_completely(run: Mapping[str, Any]) -> str | None:
    return None if run["adapted"] else f"with --model {run['model']}, which is trained completely"


def _without_cache(run: Mapping[str, Any]) -> str | None:
    return _trained_completely(run) if run["cache_frozen_prefix"] else "without --cache-frozen-prefix"


@dataclass(frozen=True)
class LoopOptions:
    """The training loop, under Lightning's own names."""

    max_epochs: int = option(3, "epochs to train; -1: no limit", positive_or_unlimited, resume="free")
    limit_train_batches: int | float = option(1.0, "train on N batches, or share of an epoch", count_or_share)
    limit_val_batches: int | float = option(1.0, "validate on N batches, or share", count_or_share, actions=_MEASURING)
    limit_test_batches: int | float = option(
        1.0, "test on N batches, or share", count_or_share, actions=_MEASURING, resume="free"
    )
    val_check_interval: int | float = option(
        1.0,
        "validate every N batches, or share of an epoch; rounded up to whole accumulation windows",
        count_or_share,
        resume="epoch_end",
    )
    accumulate_grad_batches: int = option(1, "batches per optimizer step", at_least(1))
    gradient_clip_val: float = option(1.0, "clip the gradient's norm; 0: no clipping", at_least(0))
    log_every_n_steps: int = option(
        10, "steps between two points of a curve", at_least(1), resume="free", idle=idle_with("logger", "none")
    )


@dataclass(frozen=True)
class DeviceOptions:
    """Devices and precision."""

    # fmt: off
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = option("auto", "type of device", resume="free")
    num_devices: int = option(1, "devices per node", at_least(1), aliases=("--gpu",), resume="global_batch")
    num_nodes: int = option(1, "nodes", at_least(1), aliases=("--nodes",), resume="global_batch")
    strategy: Literal[
        "auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false", "fsdp"
    ] = option("auto", "how several devices work together; fsdp: each holds a part of the frozen base (of all weights, "
        "for a plain model); the ddp kinds differ only for a plain model", resume="free", idle=_one_strategy,
        refused={"deepspeed": _NO_DEEPSPEED})
    shard_size: int | None = option(None, "fsdp: devices that hold one copy of the base together; by default those of "
        "a node", at_least(2), resume="free", idle=_not_sharded)
    precision: Literal["64", "32", "16-mixed", "bf16-mixed", "16-true", "bf16-true"] = option("32",
        "floating-point precision; a -true kind also loads the base in it; 16 and bf16 are the -mixed kinds",
        spellings={"16": "16-mixed", "bf16": "bf16-mixed", "32-true": "32", "64-true": "64"})  # as in Lightning
    # fmt: on

    @property
    def world(self) -> int:
        """The number of processes: one for each device of each node."""
        return self.num_devices * self.num_nodes

    @property
    def shards(self) -> int | None:
        """The number of devices that hold one copy of the base together. None if each holds all of it."""
        if self.strategy != FSDP or self.world == 1:
            return None
        return self.num_devices if self.shard_size is None else self.shard_size

    def for_lightning(self, strategy: Any) -> dict[str, Any]:
        """Arguments of a Trainer or a Fabric."""
        return {
            "accelerator": self.accelerator,
            "devices": self.num_devices,
            "num_nodes": self.num_nodes,
            "strategy": strategy,
            # A base of a -true kind is loaded in it already; the other parts stay float32.
            "precision": self.precision if self.precision.endswith("mixed") else "32-true",
        }


@dataclass(frozen=True)
class RunOptions:
    """The run folder, logs and checkpoints."""

    # fmt: off
    config: Path | None = option(None, "TOML file of options; the command line takes precedence",
        resume="start")
    project_dir: Path = option(Path("runs"), "folder of all runs", resume="start")
    project: str | None = option(None, "name of this run's folder; by default <model>_<task>_<dataset>_<time>",
        _names_a_folder, resume="start")
    measured: Literal["best", "last"] = option("best",
        "checkpoint that is measured and exported at the end of training", actions=_TRAINING, resume="free")
    row_results: bool = option(False, "also write rows.csv: loss and correctness of each row of the measured splits",
        actions=(*_TRAINING, TEST), resume="free")
    lm_eval: str | None = option(None, "also measure a language model on these tasks of lm-evaluation-harness: names "
        "or YAML files, separated by commas", actions=(TEST,), resume="start")
    logger: Literal["tensorboard", "csv", "wandb", "mlflow", "trackio", "none"] = option("tensorboard",
        "where curves are logged", actions=(*_TRAINING, IMP_TEST), resume="free")
    log_level: Literal["debug", "info", "warning", "error"] = option("warning",
        "how much is printed; debug also shows tracebacks", resume="free")
    checkpoint_every_n_steps: int | None = option(None,
        "also save last.ckpt every N optimizer steps; by default at epoch ends", at_least(1), actions=_TRAINING,
        resume="free")
    metric: str | None = option(None, "what selects the best checkpoint, on the first validation split: a metric of "
        "the data set, or loss; by default its first metric. Equal values: the lower loss", actions=_TRAINING)
    patience: int | None = option(None, "stop after N validations without a better --metric; by default never",
        at_least(1), actions=_TRAINING, resume="free")
    stop_after: int | float | None = option(None,
        "stop after N optimizer steps, or share of the run, with the learning rates of the whole run, which a resumed "
        "run continues", count_or_share, actions=_TRAINING, resume="start")
    auto_requeue: bool = option(False, "requeue the job when SLURM preempts it", old_keys=("is_to_auto_requeue",),
        actions=_TRAINING, resume="free",
        idle=lambda run: None if "SLURM_JOB_ID" in os.environ else "outside a SLURM job")


@dataclass(frozen=True)
class Options:
    """The resolved options of one run. `None` means: not given, and derived from the others."""

    # fmt: off
    model: str = option("opt_lora", "<family>_lora for LoRA, <family>_lora_ags for LoRA and shortcuts, or a plain "
        "Hugging Face name or folder", from_checkpoint=True)
    dataset: str = option("toy_nli", "name of a data set of the documentation, or own data: a file, a folder or a hub "
        "name", from_checkpoint=True)
    task: Task | None = option(None, "what to learn; by default the data set's task", from_checkpoint=True)
    load: str | None = option(None, "weights to start from: hub name, folder, run, checkpoint or state dict",
        old_keys=("load_name",), resume="start")
    load_type: Literal["hf", "pl", "pt", "peft"] | None = option(None,
        "hf: hub name or save_pretrained folder; pl: a .ckpt file of this program, or the folder of a run; pt: a state "
        "dict (safetensors or torch); peft: folder or hub name of a PEFT LoRA adapter; by default inferred from the "
        "name",
        resume="start", idle=lambda run: "without --load" if run["load"] is None else None)
    pretrained: bool = option(True, "use the weights of --load, or of a plain --model; --random-init: only its "
        "configuration, with random weights", opposite="random_init", old_keys=("is_pretrained",),
        from_checkpoint=True, idle=_weights_are_known)
    backbone_model: str | None = option(None,
        "location of the base model, if it moved since the checkpoint was written, or for a pt file",
        resume="start", idle=idle_with("load_type", "hf"))
    quantize: Literal["nf4", "int8"] | None = option(None,
        "load the frozen base in 4 or 8 bits (needs bitsandbytes and a GPU)", from_checkpoint=True)
    rank: int | None = option(None, "rank of LoRA; by default 8", at_least(1))
    alpha: float | None = option(None, "alpha of LoRA, whose scaling is alpha / rank; by default twice the rank",
        above(0))
    target: str | None = option(None, "projections that get LoRA: all, attention, mlp, or names such as q_proj,v_proj; "
        "by default all of the family")
    lora_config: Path | None = option(None, "LoRA configuration (TOML) with settings for each place, instead of "
        "--rank, --alpha and --target; see configs/lora/", resume="free")
    shortcut_config: Path | None = option(None, "shortcut configuration (TOML); see configs/shortcut/",
        resume="free")
    lora_init: Literal["kaiming", "gradient", "activation", "orthogonal"] = option("kaiming",
        "start of A, while B is 0: random (kaiming, orthogonal), or the leading directions of the weight's gradient "
        "(gradient) or of the inputs (activation), from --imp-limit-test-batches batches", actions=_TRAINING)
    gradient_checkpointing: bool = option(False, "recompute blocks in the backward pass: less memory, more time",
        actions=(*_TRAINING, IMP_TEST), resume="free")
    compile: bool = option(False, "compile each block with torch.compile: faster steps, after a longer start",
        actions=_TRAINING, resume="free")
    cache_frozen_prefix: bool = option(False, "compute the output of the blocks below the lowest element that is on "
        "once for each training row and reuse it in later epochs; turns dropout off in these blocks",
        actions=_TRAINING, idle=_trained_completely)
    cache_limit: str = option("4GiB", "largest size of this cache on each machine", byte_size, actions=_TRAINING,
        resume="free", idle=_without_cache)
    cache_folder: Path | None = option(None, "keep this cache in a memory-mapped file in this folder; by default in "
        "memory", actions=_TRAINING, resume="free", idle=_without_cache)
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = option(None, "implementation of attention in "
        "transformers; by default the fastest that the model supports without other packages", resume="free")
    max_new_tokens: int | None = option(None, "tokens to generate for a summary; by default --max-target-len",
        at_least(1), from_checkpoint=True, actions=_MEASURING, idle=idle_without("task", "summarization"))
    num_beams: int = option(1, "beams of the search for a summary; 1: greedy search", at_least(1),
        from_checkpoint=True, actions=_MEASURING, idle=idle_without("task", "summarization"))
    seed: int = option(0, "seed of all random numbers", seed_range, idle=_no_random_numbers)
    resume_training: bool = option(False,
        "continue the run of the checkpoint --load: optimizer, schedule, position, random numbers", actions=_TRAINING,
        resume="start")
    own: OwnDataOptions = group(OwnDataOptions, "own data")
    data: DataOptions = group(DataOptions, "data")
    optimization: Optimization = group(Optimization, "optimisation", _TRAINING)
    scoring: ScoringOptions = group(ScoringOptions, "importance test", (IMP_TEST, DYREALLOC))
    reallocation: ReallocationOptions = group(ReallocationOptions, "reallocation", (IMP_TEST, DYREALLOC))
    loop: LoopOptions = group(LoopOptions, "training loop", _TRAINING)
    devices: DeviceOptions = group(DeviceOptions, "devices and precision")
    run: RunOptions = group(RunOptions, "run folder, logs and checkpoints")


@functools.cache
def declared() -> dict[str, OptionInfo]:
    """Option name (the key in a TOML file) -> its declaration."""
    return {info.name: info for info in options_of(Options, "model and data set")}


def defaults() -> dict[str, Any]:
    return {name: info.default for name, info in declared().items()}


def flat(options: Any) -> dict[str, Any]:
    """Option name -> value, without groups."""
    values: dict[str, Any] = {}
    for found in fields(options):
        value = getattr(options, found.name)
        values |= flat(value) if is_dataclass(value) else {found.name: value}
    return values


def changed(options: Any, values: Mapping[str, Any]) -> Any:
    """The options with the named values, in whatever group they are."""
    changes = {}
    for found in fields(options):
        current = getattr(options, found.name)
        if is_dataclass(current):
            changes[found.name] = changed(current, values)
        elif found.name in values:
            changes[found.name] = values[found.name]
    return replace(options, **changes)


def as_plain(options: Options) -> dict[str, Any]:
    """The options as TOML values, without those that are `None`."""
    values = {name: str(value) if isinstance(value, Path) else value for name, value in flat(options).items()}
    return {name: value for name, value in values.items() if value is not None and name != "config"}
