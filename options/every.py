"""Every option of every action: a field each, in groups of what one consumer takes."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from heterolora.common.checks import ABOVE_0
from heterolora.elements.task import CLASSIFYING, GENERATING, TASKS, Task
from options.actions import ANSWERING, DYREALLOC, IMP_TEST, MEASURING, PREDICT, TEST, TRAINING, WITH_RUN
from options.data import DataOptions, OwnDataOptions
from options.declare import OptionInfo, group, idle_with, idle_without, option, options_of
from options.devices import DeviceOptions
from options.loop import LoopOptions
from options.optimization import Optimization
from options.predicting import PredictingOptions
from options.ranges import at_least, byte_size, seed_range
from options.run import RunOptions
from options.scoring import ReallocationOptions, ScoringOptions


def _weights_are_known(run: Mapping[str, Any]) -> str | None:
    if run["load"] is None:
        return "without --load" if run["adapted"] else None
    return None if run["load_type"] == "hf" else f"with --load-type {run['load_type']}"


def _no_text(run: Mapping[str, Any]) -> str | None:
    """Training and `test` generate summaries alone. `predict` refuses these options where it generates no text."""
    return None if run["action"] in ANSWERING else idle_without("task", *GENERATING)(run)


def _no_random_numbers(run: Mapping[str, Any]) -> str | None:
    if run["action"] in ANSWERING:
        return None if run["temperature"] else "with --temperature 0"
    if run["action"] != TEST:
        return None
    complete = run["load_type"] == "pl" or (run["pretrained"] and run["task"] not in CLASSIFYING)
    return "on test: no weight is random" if complete else None


def _trained_completely(run: Mapping[str, Any]) -> str | None:
    return None if run["adapted"] else f"with --model {run['model']}, which is trained completely"


def _without_cache(run: Mapping[str, Any]) -> str | None:
    return _trained_completely(run) if run["cache_frozen_prefix"] else "without --cache-frozen-prefix"


@dataclass(frozen=True)
class Options:
    """The resolved options of one run. `None` means: not given, and derived from the others."""

    # fmt: off
    model: str = option("lora", "what is trained; lora: LoRA on the base --load, of any architecture; lora_ags: LoRA "
        "and shortcuts; a plain Hugging Face name or folder: all weights of it", from_checkpoint=True,
        brief="lora: LoRA on any base; another name: all weights of it")
    dataset: str = option("toy_nli", "name of a data set of the documentation, or own data: a file, a folder or a hub "
        "name", from_checkpoint=True, actions=(*WITH_RUN, PREDICT),
        brief="name of a data set, or own data: a file or a folder")
    task: Task | None = option(None, "what to learn; by default the data set's task", choices=tuple(TASKS),
        from_checkpoint=True, actions=(*WITH_RUN, PREDICT))
    load: str | None = option(None, "weights to start from: hub name, folder, run, checkpoint or state dict",
        old_keys=("load_name",), resume="start",
        brief="weights to start from: hub name, folder, run, checkpoint")
    load_type: Literal["hf", "pl", "pt", "peft"] | None = option(None,
        "what --load is; hf: hub name or save_pretrained folder; pl: a .ckpt file of this program, or the folder of a "
        "run; pt: a state dict (safetensors or torch); peft: folder or hub name of a PEFT LoRA adapter; by default "
        "inferred from the name",
        resume="start", idle=lambda run: "without --load" if run["load"] is None else None)
    pretrained: bool = option(True, "use the weights of --load, or of a plain --model; --random-init: only its "
        "configuration, with random weights", opposite="random_init", old_keys=("is_pretrained",),
        from_checkpoint=True, idle=_weights_are_known)
    backbone_model: str | None = option(None,
        "location of the base model, if it moved since the checkpoint was written, or for a pt file",
        resume="start", idle=idle_with("load_type", "hf"))
    quantize: Literal["nf4", "int8"] | None = option(None,
        "load the frozen base in 4 or 8 bits (needs bitsandbytes and a GPU)", from_checkpoint=True)
    rank: int | None = option(None, "rank of LoRA; by default 8", at_least(1),
        brief="rank of LoRA (8)")
    alpha: float | None = option(None, "alpha of LoRA, whose scaling is alpha / rank; by default twice the rank",
        ABOVE_0)
    target: str | None = option(None, "layers that get LoRA: all, attention, mlp, or names such as q_proj,v_proj; "
        "by default all linear layers of the blocks; experts, embed_tokens and lm_head are added by name, as in "
        "all,lm_head",
        brief="layers with LoRA: all, attention, mlp, experts, or names")
    lora_config: Path | None = option(None, "LoRA configuration (TOML) with settings for each place, instead of "
        "--rank, --alpha and --target; see configs/lora/", resume="free",
        brief="LoRA configuration, with settings for each place")
    shortcut_config: Path | None = option(None, "shortcut configuration (TOML); see configs/shortcut/",
        resume="free")
    lora_init: Literal["kaiming", "gradient", "activation", "orthogonal"] = option("kaiming",
        "start of A, while B is 0: random (kaiming, orthogonal), or the leading directions of the weight's gradient "
        "(gradient) or of the inputs (activation), from --imp-limit-test-batches batches", actions=TRAINING)
    gradient_checkpointing: bool = option(False, "recompute blocks in the backward pass: less memory, more time",
        actions=(*TRAINING, IMP_TEST), resume="free")
    compile: bool = option(False, "compile each block with torch.compile: faster steps, after a longer start",
        actions=TRAINING, resume="free")
    cache_frozen_prefix: bool = option(False, "compute the output of the blocks below the lowest element that is on "
        "once for each training row and reuse it in later epochs; turns dropout off in these blocks",
        actions=TRAINING, idle=_trained_completely)
    cache_limit: str = option("4GiB", "largest size of this cache on each machine", byte_size, actions=TRAINING,
        resume="free", idle=_without_cache)
    cache_folder: Path | None = option(None, "keep this cache in a memory-mapped file in this folder; by default in "
        "memory", actions=TRAINING, resume="free", idle=_without_cache)
    attention: Literal["sdpa", "flash_attention_2", "eager"] | None = option(None, "implementation of attention in "
        "transformers; by default the fastest that the model supports without other packages", resume="free")
    hub_kernels: bool = option(False, "let transformers download kernels from the hub, which are code, and compute "
        "layers with them on a GPU; not with imp-test and train-dyrealloc", actions=(*WITH_RUN, PREDICT), resume="free")
    max_new_tokens: int | None = option(None, "tokens to generate; by default --max-target-len for a summary, "
        "otherwise 256", at_least(1), from_checkpoint=True, actions=(*MEASURING, *ANSWERING), idle=_no_text,
        brief="tokens to generate")
    num_beams: int = option(1, "beams of the search for a text; 1: greedy search", at_least(1),
        from_checkpoint=True, actions=(*MEASURING, PREDICT), idle=_no_text)
    seed: int = option(0, "seed of all random numbers", seed_range, idle=_no_random_numbers,
        brief="seed of all random numbers")
    resume_training: bool = option(False,
        "continue the run of the checkpoint --load: optimizer, schedule, position, random numbers", actions=TRAINING,
        resume="start",
        brief="continue the run of --load")
    own: OwnDataOptions = group(OwnDataOptions, "own data", (*WITH_RUN, PREDICT))
    data: DataOptions = group(DataOptions, "data", (*WITH_RUN, PREDICT))
    predicting: PredictingOptions = group(PredictingOptions, "predictions", ANSWERING)
    optimization: Optimization = group(Optimization, "optimisation", TRAINING)
    scoring: ScoringOptions = group(ScoringOptions, "importance test", (IMP_TEST, DYREALLOC))
    reallocation: ReallocationOptions = group(ReallocationOptions, "reallocation", (IMP_TEST, DYREALLOC))
    loop: LoopOptions = group(LoopOptions, "training loop", TRAINING)
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


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of options as TOML values, without those that are `None`."""
    return {name: _as_toml(value) for name, value in values.items() if value is not None and name != "config"}


def _as_toml(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else [*value] if isinstance(value, tuple) else value


def as_plain(options: Options) -> dict[str, Any]:
    """The options as TOML values, without those that are `None`."""
    return plain(flat(options))
