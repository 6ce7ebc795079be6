"""How several devices work together, for Lightning: a file for each kind of row in `options.devices.STRATEGIES`.

Such a file has one function::

    def build(devices: DeviceOptions, adapted: bool) -> Strategy: ...
"""

from __future__ import annotations

import importlib

from pytorch_lightning.strategies import Strategy

from actions.training.strategies.one_device import OneDeviceStrategy
from options.devices import STRATEGIES, DeviceOptions


def strategy_of(devices: DeviceOptions, adapted: bool) -> Strategy:
    """The strategy of a trainer. `adapted`: whether the model has LoRA or shortcuts, on a frozen base."""
    if devices.world == 1:
        return OneDeviceStrategy()
    kind = importlib.import_module(f"{__name__}.{STRATEGIES[devices.strategy].file}")
    return kind.build(devices, adapted)
