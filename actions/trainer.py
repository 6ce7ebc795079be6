"""`pl.Trainer` from the options: devices, strategy, loggers, callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from pytorch_lightning.callbacks import EarlyStopping, LearningRateMonitor
from pytorch_lightning.strategies import DDPStrategy, Strategy

from actions.callbacks import CountOptimizerSteps, Progress, SayValidations, SeedEachBatch, StopAfter, StopOnNaN
from actions.checkpoints import RunCheckpoints, SafeCheckpointIO
from actions.loggers import build_loggers
from actions.options import Options
from actions.strategy import FlatDDPStrategy
from heterolora.errors import UserError
from model.quantize import check_quantize
from model.task.fine_tuning import FineTuning


def check_devices(options: Options) -> None:
    """Raises UserError for devices that this machine lacks, and for a precision that they can't compute in."""
    accelerator = options.accelerator
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise UserError(f"--accelerator {accelerator}: this machine has no GPU", "use --accelerator cpu or auto")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("--accelerator mps: this machine has no Apple GPU", "use --accelerator cpu or auto")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    there = gpus if on_gpu else 1 if accelerator == "mps" else os.cpu_count() or 1
    if options.num_devices > there:
        kind = "GPUs" if on_gpu else "Apple GPUs" if accelerator == "mps" else "CPU cores"
        raise UserError(f"--num-devices {options.num_devices} is more than this machine has", f"it has {there} {kind}")
    if options.precision == "16-mixed" and not on_gpu:
        raise UserError("--precision 16-mixed needs a GPU", "use bf16-mixed or 32 here")
    if options.quantize is not None:
        check_quantize(options.quantize, options.precision, on_gpu)


def build_trainer(
    options: Options, task: FineTuning, folder: Path, callbacks: tuple[pl.Callback, ...] = (), done: int = 0
) -> pl.Trainer:
    """A trainer that writes into `folder`; of a resumed run, `done` optimizer steps are over already."""
    return pl.Trainer(
        accelerator=options.accelerator,
        devices=options.num_devices,
        num_nodes=options.num_nodes,
        strategy=_strategy(options, task),
        precision=_precision(options),
        max_epochs=options.max_epochs,
        max_steps=-1,  # StopAfter counts them
        accumulate_grad_batches=options.accumulate_grad_batches,
        gradient_clip_val=options.gradient_clip_val or None,
        val_check_interval=options.val_check_interval,
        limit_train_batches=options.limit_train_batches,
        limit_val_batches=options.limit_val_batches,
        limit_test_batches=options.limit_test_batches,
        log_every_n_steps=options.log_every_n_steps,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares the rows out itself
        enable_checkpointing=bool(callbacks),
        enable_model_summary=False,
        default_root_dir=folder,
        logger=build_loggers(options, folder, done) if callbacks else False,
        callbacks=[Progress(), *callbacks],
        plugins=[SafeCheckpointIO(), *_environment()],
    )


def training_callbacks(
    options: Options, task: FineTuning, checkpoints: RunCheckpoints, more: tuple[pl.Callback, ...] = ()
) -> tuple[pl.Callback, ...]:
    """What training needs besides Lightning's own, and `more`; the one that saves comes last."""
    callbacks: list[pl.Callback] = [
        CountOptimizerSteps(),
        SeedEachBatch(options.seed),
        StopOnNaN(),
        SayValidations(),
        *more,
    ]
    if options.max_steps != -1:
        callbacks.append(StopAfter(options.max_steps))
    if options.patience is not None:
        callbacks.append(EarlyStopping(task.monitor, mode=task.monitor_mode, patience=options.patience))
    if options.logger != "none":
        callbacks.append(LearningRateMonitor("step"))
    return (*callbacks, checkpoints)


def _strategy(options: Options, task: FineTuning) -> str | Strategy:
    if options.num_devices * options.num_nodes == 1:
        return "auto"
    if task.space is not None:
        return FlatDDPStrategy()  # right whatever is on, which no wrapper is
    return DDPStrategy(find_unused_parameters=options.strategy.endswith("_true"))


def _precision(options: Options) -> Any:
    """Lightning's word. Models of a `-true` kind are loaded in it already, but for the parts that stay float32."""
    return options.precision if options.precision.endswith("mixed") else "32-true"


def _environment() -> list[SLURMEnvironment]:
    """Under SLURM, Lightning would save in the middle of a step when it is told to requeue; ours waits for its end."""
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []
