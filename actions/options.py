"""Every option of every action: one field each, read by `--help`, the command line and the `--config` file alike."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from actions.fields import (
    OptionInfo,
    above,
    at_least,
    count_or_share,
    option,
    positive_or_unlimited,
    share,
)
from dataset.spec import TASKS
from heterolora import saliency
from heterolora.allocation import MODES

TRAIN, TEST, IMP_TEST, DYREALLOC = "train", "test", "imp-test", "train-dyrealloc"


@dataclass(frozen=True)
class Action:
    """One action: a line of help, and the module whose `run` does it."""

    summary: str
    module: str


ACTIONS: dict[str, Action] = {
    TRAIN: Action("fine-tune a model, plain or with LoRA", "actions.train"),
    TEST: Action("measure a model or a checkpoint on the test split", "actions.test"),
    IMP_TEST: Action("score the elements of a model, to choose among them before training", "actions.imp_test"),
    DYREALLOC: Action(
        "fine-tune while deciding again and again which elements are worth their parameters", "actions.train_dyrealloc"
    ),
}

_TRAINING = (TRAIN, DYREALLOC)
_SCORING = (IMP_TEST, DYREALLOC)
_DYREALLOC = (DYREALLOC,)

MODEL, DATA, OPTIMISATION, SCORING, REALLOCATION, LENGTH, DEVICES, FILES = (
    "model",
    "data",
    "optimisation",
    "importance test",
    "reallocation",
    "length of the run",
    "devices and precision",
    "run folder, logs and configuration",
)


@dataclass(frozen=True)
class Options:
    """The resolved options of one run. `None` means: not given, and decided from the rest."""

    # model
    model: str = option(
        "opt_lora",
        "text",
        MODEL,
        "<family>_lora for LoRA, <family>_lora_ags for LoRA and shortcuts, or a plain Hugging Face name or folder",
        from_checkpoint=True,
    )
    load: str | None = option(
        None,
        "text",
        MODEL,
        "weights to start from: hub name, folder, checkpoint or state dict",
        old_keys=("load_name",),
    )
    load_type: str | None = option(
        None,
        "text",
        MODEL,
        "hf: hub name or save_pretrained folder; pl: a .ckpt of ours; pt: a state dict (safetensors or torch); "
        "peft: a PEFT LoRA adapter, a folder or a hub name; "
        "by default told from the name",
        choices=("hf", "pl", "pt", "peft"),
    )
    pretrained: bool = option(
        False,
        "boolean",
        MODEL,
        "use the weights of --load, not only its configuration",
        old_keys=("is_pretrained",),
        from_checkpoint=True,
    )
    backbone_model: str | None = option(
        None, "text", MODEL, "where the base model lies, if it moved since the checkpoint was written, or for a pt file"
    )
    quantize: str | None = option(
        None,
        "text",
        MODEL,
        "load the frozen base in 4 or 8 bits (needs bitsandbytes and a GPU)",
        choices=("nf4", "int8"),
        from_checkpoint=True,
    )
    lora_config: Path | None = option(None, "path", MODEL, "LoRA configuration (TOML); see configs/lora/")
    shortcut_config: Path | None = option(None, "path", MODEL, "shortcut configuration (TOML); see configs/shortcut/")
    # data
    dataset: str = option("toy_nli", "text", DATA, "name of the data set; see README for all", from_checkpoint=True)
    task: str | None = option(
        None, "text", DATA, "what to learn; by default what the data set is for", choices=TASKS, from_checkpoint=True
    )
    dataset_saved_path: Path | None = option(
        None,
        "path",
        DATA,
        "read the data set from a save_to_disk folder or a folder of jsonl, csv or parquet files",
        from_checkpoint=True,
    )
    disable_dataset_cache: bool = option(False, "boolean", DATA, "tokenise anew, reuse no cached data")
    max_token_len: int | None = option(
        None,
        "integer",
        DATA,
        "longest input in tokens (block length for language modelling); by default the model's limit, at most 512",
        check=at_least(2),
        from_checkpoint=True,
    )
    max_target_len: int = option(
        64, "integer", DATA, "longest summary in tokens", check=at_least(1), from_checkpoint=True
    )
    max_new_tokens: int | None = option(
        None,
        "integer",
        DATA,
        "tokens to generate for a summary; by default --max-target-len",
        check=at_least(1),
        from_checkpoint=True,
    )
    batch_size: int = option(8, "integer", DATA, "rows per device and batch", check=at_least(1))
    group_by_length: bool = option(False, "boolean", DATA, "batch rows of similar length together: less padding")
    num_workers: int = option(0, "integer", DATA, "data loading processes", check=at_least(0), aliases=("--cpu",))
    # optimisation
    optimizer: str = option(
        "adamw",
        "text",
        OPTIMISATION,
        "optimizer",
        choices=("adam", "adamw", "sgd"),
        old_keys=("training_optimizer",),
        actions=_TRAINING,
    )
    learning_rate: float = option(5e-5, "real", OPTIMISATION, "peak learning rate", check=above(0), actions=_TRAINING)
    loraplus_ratio: float = option(
        1.0, "real", OPTIMISATION, "LoRA+: learning rate of B as a multiple of A's", check=above(0), actions=_TRAINING
    )
    weight_decay: float = option(
        0.0, "real", OPTIMISATION, "weight decay of matrices (never of biases and norms)", check=at_least(0),
        actions=_TRAINING,
    )  # fmt: skip
    lr_scheduler: str = option(
        "none",
        "text",
        OPTIMISATION,
        "learning rate after warm-up: constant, linear to 0, or cosine to --eta-min",
        choices=("none", "linear", "cosine_annealing"),
        actions=_TRAINING,
    )
    warmup_steps: int = option(
        0, "integer", OPTIMISATION, "steps of linear warm-up from 0", check=at_least(0), actions=_TRAINING
    )
    eta_min: float = option(
        0.0, "real", OPTIMISATION, "where cosine_annealing ends", check=at_least(0), actions=_TRAINING
    )
    accumulate_grad_batches: int = option(
        1, "integer", OPTIMISATION, "batches per optimizer step", check=at_least(1), actions=_TRAINING
    )
    gradient_clip_val: float = option(
        0.0, "real", OPTIMISATION, "clip the gradient's norm; 0: no clipping", check=at_least(0), actions=_TRAINING
    )
    gradient_checkpointing: bool = option(
        False, "boolean", OPTIMISATION, "recompute blocks in backward: less memory, more time"
    )
    seed: int = option(0, "integer", OPTIMISATION, "seed of everything random", check=at_least(0))
    # importance test
    importance_test_name: str = option(
        "grad_norm", "text", SCORING, "heuristic that scores the elements", choices=saliency.names(), actions=_SCORING
    )
    imp_limit_test_batches: int | float = option(
        32,
        "amount",
        SCORING,
        "scoring batches over all processes, or share of the training set",
        check=count_or_share,
        actions=_SCORING,
    )
    imp_warmup_batches: int | None = option(
        None,
        "integer",
        SCORING,
        "batches to train all elements on before scoring, undone afterwards; "
        "by default 32 for snip, synflow and alpha_test, else 0",
        check=at_least(0),
        aliases=("--alpha-limit-zptrain-batches",),
        old_keys=("alpha_limit_zptrain_batches",),
        actions=(IMP_TEST,),
    )
    imp_warmup_lr: float = option(
        5e-4, "real", SCORING, "learning rate of that training", check=above(0), actions=(IMP_TEST,)
    )
    metric_red_tolerance: float = option(
        0.01,
        "real",
        SCORING,
        "alpha_test: how much worse the metric may get, as a share of itself, and still counts as unchanged",
        check=at_least(0),
        actions=_SCORING,
    )
    turn_on_percentile: float = option(
        0.25, "real", SCORING, "share of the elements to turn on, in (0, 1]", check=share, actions=_SCORING
    )
    dyrealloc_ags_mode: str | None = option(
        None,
        "text",
        SCORING,
        "off: choose among LoRA alone, shortcuts stay on; separated: each kind within its own budget; combined: all "
        "within one; by default combined with shortcuts, off without",
        choices=MODES,
        actions=_SCORING,
    )
    # reallocation
    realloc_N: int | float = option(  # noqa: N815 the flag is --realloc-N
        0.2,
        "amount",
        REALLOCATION,
        "score and reallocate every so many training batches, or share of an epoch: 1 is a batch, 1.0 an epoch; also "
        "at the start of every epoch",
        check=count_or_share,
        actions=_DYREALLOC,
    )
    realloc_warmup_epochs: int | None = option(
        None,
        "integer",
        REALLOCATION,
        "epochs in which the elements that were on least often come first; by default 1 for snip, synflow and "
        "alpha_test, else 0",
        check=at_least(0),
        actions=_DYREALLOC,
    )
    imp_source: str = option(
        "dedicated",
        "text",
        REALLOCATION,
        "where gradients to score by come from: batches of their own, or the training batches (no extra passes)",
        choices=("dedicated", "training"),
        actions=_DYREALLOC,
    )
    # length of the run
    max_epochs: int = option(
        3, "integer", LENGTH, "epochs to train; -1: no limit", check=positive_or_unlimited, actions=_TRAINING
    )
    max_steps: int = option(
        -1, "integer", LENGTH, "optimizer steps to train; -1: no limit", check=positive_or_unlimited,
        actions=_TRAINING,
    )  # fmt: skip
    patience: int | None = option(
        None,
        "integer",
        LENGTH,
        "stop after so many validations without a better result; by default never",
        check=at_least(1),
        actions=_TRAINING,
    )
    val_check_interval: int | float = option(
        1.0, "amount", LENGTH, "validate every so many batches, or share of an epoch", check=count_or_share,
        actions=_TRAINING,
    )  # fmt: skip
    limit_train_batches: int | float = option(
        1.0, "amount", LENGTH, "train on so many batches, or share of an epoch", check=count_or_share,
        actions=_TRAINING,
    )  # fmt: skip
    limit_val_batches: int | float = option(
        1.0, "amount", LENGTH, "validate on so many batches, or share", check=count_or_share
    )
    limit_test_batches: int | float = option(
        1.0, "amount", LENGTH, "test on so many batches, or share", check=count_or_share
    )
    # devices and precision
    accelerator: str = option("auto", "text", DEVICES, "kind of device", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    num_devices: int = option(1, "integer", DEVICES, "devices per node", check=at_least(1), aliases=("--gpu",))
    num_nodes: int = option(1, "integer", DEVICES, "nodes", check=at_least(1), aliases=("--nodes",))
    strategy: str = option(
        "auto",
        "text",
        DEVICES,
        "how devices work together",
        choices=("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"),
    )
    precision: str = option(
        "32",
        "text",
        DEVICES,
        "numbers to compute in; a -true kind loads the base in it",
        choices=("64", "32", "16-mixed", "bf16-mixed", "16-true", "bf16-true"),
    )
    auto_requeue: bool = option(
        False, "boolean", DEVICES, "requeue the job when SLURM preempts it", old_keys=("is_to_auto_requeue",),
        actions=_TRAINING,
    )  # fmt: skip
    # run folder, logs and configuration
    config: Path | None = option(None, "path", FILES, "TOML file of options; the command line wins over it")
    resume_training: bool = option(
        False,
        "boolean",
        FILES,
        "continue the run of the checkpoint that --load names: optimizer, schedule, position, randomness",
        actions=_TRAINING,
    )
    project_dir: Path = option(Path("runs"), "path", FILES, "folder of all runs")
    project: str | None = option(
        None, "text", FILES, "name of this run's folder; by default <model>_<task>_<dataset>_<time>"
    )
    logger: str = option(
        "tensorboard", "text", FILES, "where curves go", choices=("tensorboard", "csv", "wandb", "none")
    )
    log_every_n_steps: int = option(
        10, "integer", FILES, "steps between two points of a curve", check=at_least(1), actions=_TRAINING
    )
    checkpoint_every_n_steps: int | None = option(
        None,
        "integer",
        FILES,
        "also save last.ckpt every so many optimizer steps; by default at the end of every epoch",
        check=at_least(1),
        actions=_TRAINING,
    )
    log_level: str = option(
        "warning",
        "text",
        FILES,
        "how much to say; debug also shows tracebacks",
        choices=("debug", "info", "warning", "error"),
    )


def declared() -> dict[str, OptionInfo]:
    """Option name (a field of `Options`, a TOML key) → what is declared of it."""
    return {field.name: field.metadata["option"] for field in fields(Options)}


def defaults() -> dict[str, Any]:
    return {field.name: field.default for field in fields(Options)}


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")
