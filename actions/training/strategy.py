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
from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from actions.run.launcher import Launcher


class _Resident(Strategy):
    """The network stays on its device when a `fit`, `validate` or `test` ends.

    Lightning would move it to the CPU each time, and back for the next one. That takes seconds, and memory: on the host
    for all shares of a sharded base, and twice on the GPU for a base in 8 bits, whose layers keep a second reference.
    """

    def teardown(self) -> None:
        network, self._lightning_module = self._lightning_module, None
        try:
            super().teardown()
        finally:
            self._lightning_module = network


class OneDeviceStrategy(_Resident, SingleDeviceStrategy):
    """Lightning sets `parallel_devices` to the device that it chose."""

    parallel_devices: list[torch.device] | None = None

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[0] if self.parallel_devices else torch.device("cpu")


class _WithLauncher:
    """A strategy whose processes `actions.run.launcher` starts."""

    def _configure_launcher(self) -> None:
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class ScoringStrategy(_WithLauncher, fabric.DDPStrategy):
    """The processes of `imp-test`. It wraps no model."""


class PlainDDPStrategy(_WithLauncher, DDPStrategy):
    """PyTorch's own wrapper, for a plain model."""


class FlatDDPStrategy(_Resident, _WithLauncher, DDPStrategy):
    """DDP without the wrapper: the backward pass gives the gradients of this process.

    The task sums them over processes when an accumulation window ends; see `model.task.window`. At that moment
    `requires_grad` decides which gradients are synchronised. It may change between windows, in the same way in all
    processes. `on_before_optimizer_step` sees global gradients, callbacks see local ones in `on_after_backward`.
    """

    def configure_ddp(self) -> None:
        _sync_module_states(self.model)  # the same initial weights everywhere, as the wrapper does


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
