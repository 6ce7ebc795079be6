"""The option that a user means by a flag of another program, or by a misspelt one."""

from __future__ import annotations

import difflib

from heterolora.common.errors import nearest
from options.actions import ALL_OPTIONS
from options.declare import flag_of
from options.every import declared

#: An option, or an option with its value -> its names in PEFT, Transformers, TRL, LLaMA-Factory, axolotl and LitGPT.
_ELSEWHERE = {
    "accumulate-grad-batches": "gradient_accumulation_steps gradient_accumulation_iters",
    "alpha": "lora_alpha",
    "attention": "attn_implementation flash_attn flash_attention",
    "batch-size": "per_device_train_batch_size per_device_eval_batch_size micro_batch_size global_batch_size "
    "train_batch_size eval_batch_size",
    "checkpoint-every-n-steps": "save_steps save_interval save_strategy",
    "class-weights balanced": "class_weight class_weighting",
    "dataset": "dataset_name dataset_path data_path data_files data train_file datasets",
    "gradient-checkpointing": "use_gradient_checkpointing activation_checkpointing",
    "gradient-clip-val": "max_grad_norm gradient_clipping max_norm",
    "label-column": "label_column_name label_names",
    "load": "model_name_or_path model_name model_path model_id base_model checkpoint_dir",
    "log-every-n-steps": "logging_steps log_interval",
    "logger": "report_to",
    "lr-scheduler": "lr_scheduler_type learning_rate_scheduler",
    "max-epochs": "num_train_epochs num_epochs epochs n_epochs",
    "max-steps": "max_train_steps num_train_steps",
    "max-target-len": "max_target_length",
    "max-token-len": "max_seq_length max_seq_len max_length max_source_length model_max_length cutoff_len sequence_len "
    "seq_length block_size",
    "measured best": "load_best_model_at_end",
    "messages-column": "field_messages messages_field",
    "metric": "metric_for_best_model",
    "num-devices": "devices gpus num_gpus n_gpus n_gpu num_processes nproc_per_node",
    "num-nodes": "nnodes num_machines",
    "num-workers": "dataloader_num_workers preprocessing_num_workers",
    "optimizer": "optim",
    "packing": "sample_packing",
    "patience": "early_stopping_patience",
    "precision": "dtype torch_dtype",
    "precision 16": "fp16",
    "precision bf16": "bf16",
    "project": "run_name experiment_name",
    "project-dir": "output_dir out_dir output save_dir logging_dir",
    "quantize": "quantization quantization_bit",
    "quantize int8": "load_in_8bit",
    "quantize nf4": "load_in_4bit",
    "rank": "lora_r lora_rank lora_dim r",
    "response-column": "completion_column answer_column",
    "resume-training": "resume resume_from_checkpoint auto_resume_from_checkpoints",
    "strategy fsdp": "fsdp",
    "target": "target_modules lora_target lora_target_modules",
    "target all": "lora_target_linear",
    "text-columns": "text_column text_column_name text_field dataset_text_field",
    "val-check-interval": "eval_steps eval_interval eval_strategy evaluation_strategy",
    "validation-share": "val_set_size val_size val_split_fraction test_size",
    "warmup-steps": "num_warmup_steps lr_warmup_steps",
    "warmup-steps 0.06": "warmup_ratio",
}
_MEANT = {name: option for option, names in _ELSEWHERE.items() for name in names.split()}
_KEYS = ("lora_dropout", "use_rslora")  # of a LoRA configuration


def flag_meant_by(argument: str) -> str:
    """The advice for a flag that is not known, such as `did you mean '--rank'?`."""
    name = argument.split("=")[0].lstrip("-").rpartition(".")[2].replace("-", "_")  # LitGPT has --train.epochs
    if name in _KEYS:
        return f"set the key {name} in a file for --lora-config, see configs/lora/"
    option = _MEANT.get(name) or _nearest(name.replace("_", "-"))
    return f"did you mean '--{option}'?" if option else f"see {ALL_OPTIONS}"


def key_meant_by(name: str) -> str:
    """The advice for a key of an options file that is not known."""
    name = name.replace("-", "_")
    if name in _KEYS:
        return f"set the key {name} in a file for lora_config, see configs/lora/"
    option = _MEANT.get(name) or _nearest(name.replace("_", "-"))
    if option is None:
        return nearest(name, declared(), ALL_OPTIONS)
    return f"did you mean '{option.split()[0].replace('-', '_')}'?"


def _nearest(name: str) -> str | None:
    """The flag with these initials, such as `lr`, with nearly this spelling, or with more or fewer words."""
    infos = declared().values()
    flags = [flag.strip("-") for info in infos for flag in (info.flag, *info.aliases)]
    flags += [flag_of(info.opposite).strip("-") for info in infos if info.opposite]
    found = [flag for flag in flags if "".join(word[0] for word in flag.split("-")) == name]
    found += difflib.get_close_matches(name, flags, n=1, cutoff=0.7)
    ends = [
        flag for flag in flags if flag.endswith(f"-{name}") or name.endswith(f"-{flag}") or name.startswith(f"{flag}-")
    ]
    return next(iter([*found, *sorted(ends, key=len, reverse=True)]), None)
