"""One device, and what the strategies share."""

from __future__ import annotations

import torch
from pytorch_lightning.strategies import SingleDeviceStrategy, Strategy

from actions.run.launcher import Launcher


class Resident(Strategy):
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


class WithLauncher:
    """A strategy whose processes `actions.run.launcher` starts."""

    def _configure_launcher(self) -> None:
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)


class OneDeviceStrategy(Resident, SingleDeviceStrategy):
    """Lightning sets `parallel_devices` to the device that it chose."""

    parallel_devices: list[torch.device] | None = None

    @property
    def root_device(self) -> torch.device:
        return self.parallel_devices[0] if self.parallel_devices else torch.device("cpu")
