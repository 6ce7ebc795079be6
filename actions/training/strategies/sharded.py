"""Every device holds a part of the frozen base, or of a plain model. `model.sharding` divides the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import ModelParallelStrategy, Strategy

from actions.training.strategies.one_device import WithLauncher
from actions.training.strategies.replicated import FlatDDPStrategy
from options.devices import DeviceOptions


def build(devices: DeviceOptions, adapted: bool) -> Strategy:
    return FlatDDPStrategy() if adapted else PlainFSDPStrategy(devices.world)  # what is trained is whole everywhere


class PlainFSDPStrategy(WithLauncher, ModelParallelStrategy):
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
