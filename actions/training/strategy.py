"""One device, DDP for adapted models without PyTorch's wrapper, and FSDP for plain ones.

PyTorch's DistributedDataParallel decides once, when it wraps a model, which gradients it synchronises. It would not
synchronise elements that are turned on later. LoRA's gradients take a few megabytes, so that one all-reduce of a flat
tensor after the backward pass costs less than the wrapper.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning_fabric import strategies as fabric
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from actions.run.launcher import Launcher
from model.lightning import Resident, WithLauncher, make_equal


class OneDeviceStrategy(Resident, SingleDeviceStrategy):
    """Lightning sets `parallel_devices` to the device that it chose."""

    parallel_devices: list[torch.device] | None = None

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[0] if self.parallel_devices else torch.device("cpu")


class _WithLauncher(WithLauncher):
    launches = Launcher


class ScoringStrategy(_WithLauncher, fabric.DDPStrategy):
    """The processes of `imp-test`. It wraps no model."""


class PlainDDPStrategy(_WithLauncher, DDPStrategy):
    """PyTorch's own wrapper, for a plain model."""


class FlatDDPStrategy(Resident, _WithLauncher, DDPStrategy):
    """DDP without the wrapper: the backward pass gives the gradients of this process.

    The task sums them over processes when an accumulation window ends; see `model.task.window`. At that moment
    `requires_grad` decides which gradients are synchronised. It may change between windows, in the same way in all
    processes. `on_before_optimizer_step` sees global gradients, callbacks see local ones in `on_after_backward`.
    """

    def configure_ddp(self) -> None:
        make_equal(self.model)


class PlainFSDPStrategy(_WithLauncher, ModelParallelStrategy):
    """Lightning's strategy for FSDP2. The task shards its network in `configure_model`.

    A checkpoint is one file, as from any strategy. An optimizer without state (SGD, or before the first step) has
    nothing to load, which Lightning does not expect. The task loads the weights itself in `on_load_checkpoint`.
    """

    def __init__(self, world: int) -> None:
        super().__init__(data_parallel_size=world, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        contents = self.checkpoint_io.load_checkpoint(checkpoint_path)
        if any(optimizer["state"] for optimizer in contents["optimizer_states"]):
            super().load_checkpoint(checkpoint_path, weights_only)
        return contents
