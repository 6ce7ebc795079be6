"""`pl.Trainer` from the options: devices, strategy, loggers, callbacks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LambdaCallback, LearningRateMonitor

from actions.run.processes import check_processes, cluster_environment
from actions.training.agreement import check_agreement
from actions.training.callbacks import (
    CountOptimizerSteps,
    EarlyStopping,
    EndTogether,
    LogLoss,
    Progress,
    SayValidations,
    SeedEachBatch,
    StopAfter,
    ValidateAfterWindows,
    WarnOfOneClass,
)
from actions.training.checkpoints import RunCheckpoints, SafeCheckpointIO
from actions.training.experiment import Experiment
from actions.training.health import StopOnNaN
from actions.training.hub_kernels import HubKernels
from actions.training.limits import check_batches
from actions.training.loggers import build_loggers
from actions.training.resources import Resources
from actions.training.strategies import strategy_of
from actions.training.training_state import CheckForm
from heterolora.common.errors import UserError
from model.checkpoint import Checkpoint
from model.quantize import check_quantize
from model.task.fine_tuning import FineTuning
from options.every import Options


def check_devices(options: Options) -> None:
    """Raise UserError for devices that this machine does not have, and for a precision that they do not support.

    Also for a number of processes that torchrun or SLURM has not started.
    """
    devices, accelerator = options.devices, options.devices.accelerator
    check_processes(devices)
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and gpus == 0:
        raise UserError(f"--accelerator {accelerator}: this machine has no GPU", "use --accelerator cpu or auto")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("--accelerator mps: this machine has no Apple GPU", "use --accelerator cpu or auto")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and gpus > 0)
    kind = "GPUs" if on_gpu else "Apple GPUs" if accelerator == "mps" else "CPU cores"
    available = gpus if on_gpu else 1 if accelerator == "mps" else os.cpu_count() or 1
    if (asked := devices.num_devices) > available:
        raise UserError(f"--num-devices {asked} is more than this machine has", f"it has {available} {kind}")
    cores = os.cpu_count() or 1
    if (workers := options.data.num_workers) > cores:
        raise UserError(f"--num-workers {workers} is more than this machine has CPU cores", f"give at most {cores}")
    if devices.precision == "16-mixed" and not on_gpu:
        raise UserError("--precision 16-mixed needs a GPU", "use bf16-mixed or 32 here")
    if options.attention == "flash_attention_2" and not (on_gpu and "16" in devices.precision):
        raise UserError(
            "--attention flash_attention_2 needs a GPU and a --precision of 16 bits", "use sdpa, or bf16-mixed on a GPU"
        )
    if options.quantize is not None:
        check_quantize(options.quantize, devices.precision, on_gpu)


def build_trainer(experiment: Experiment, folder: Path, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """A trainer that writes into `folder`. With callbacks it trains, and curves continue those of a resumed run."""
    options, resumed = experiment.options, experiment.resumed

    def check(*_: Any, **__: Any) -> None:
        """At the start of every `fit`, `validate` and `test`, when the rows are encoded."""
        check_agreement(experiment)
        check_batches(experiment.task.record.action, options, experiment.data)

    return trainer_of(
        options,
        experiment.task,
        [LambdaCallback(setup=check), *callbacks],
        resumed,
        **vars(options.loop),
        max_steps=-1,  # StopAfter counts them
        num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(callback, RunCheckpoints) for callback in callbacks),
        default_root_dir=folder,
        logger=build_loggers(options, folder, resumed.step if resumed else 0) if callbacks else False,
    )


def trainer_of(
    options: Options,
    task: FineTuning,
    callbacks: Sequence[pl.Callback],
    resumed: Checkpoint | None = None,
    **more: Any,
) -> pl.Trainer:
    """A trainer on the devices of the options, with a progress bar. `more` are arguments of `pl.Trainer`."""
    strategy = strategy_of(options.devices, adapted=task.space is not None)
    environment = cluster_environment()
    return pl.Trainer(
        **options.devices.for_lightning(strategy),
        **more,
        use_distributed_sampler=False,  # the data modules divide the rows themselves
        enable_model_summary=False,
        inference_mode=task.sharding is None,  # weights that FSDP2 gathers in it could not be trained with
        callbacks=[Progress(), EndTogether(), *([HubKernels()] if options.hub_kernels else []), *callbacks],
        plugins=[SafeCheckpointIO(resumed), *([] if environment is None else [environment])],
    )


def training_callbacks(options: Options, checkpoints: RunCheckpoints, more: Sequence[pl.Callback]) -> list[pl.Callback]:
    """The callbacks of training, with `more`. The one that saves is the last."""
    callbacks = [
        CheckForm(),
        Resources(),
        CountOptimizerSteps(),
        SeedEachBatch(options.seed),
        StopOnNaN(),
        SayValidations(),
    ]
    callbacks += [WarnOfOneClass(options.optimization.rate), *more]
    callbacks += [
        ValidateAfterWindows(),
        EarlyStopping(checkpoints.monitor, checkpoints.mode, options.run.patience, checkpoints.may_be_best),
    ]
    if options.optimization.max_steps != -1 or options.run.stop_after is not None:
        callbacks.append(StopAfter(options.run.stop_after))
    if options.run.logger != "none":
        callbacks += [LearningRateMonitor("step"), LogLoss()]
    return [*callbacks, checkpoints]
