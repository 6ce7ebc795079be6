"""One device, and what the strategies share."""

from __future__ import annotations

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy

from actions.run.launcher import Launcher
from model import lightning


class WithLauncher(lightning.WithLauncher):
    """A strategy whose processes `actions.run.launcher` starts."""

    launches = Launcher


class OneDeviceStrategy(lightning.Resident, SingleDeviceStrategy):
    """Lightning sets `parallel_devices` to the device that it chose."""

    parallel_devices: list[torch.device] | None = None

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[0] if self.parallel_devices else torch.device("cpu")
