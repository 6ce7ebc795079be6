"""Every device holds the whole model: DDP, for adapted models without PyTorch's wrapper.

PyTorch's DistributedDataParallel decides once, when it wraps a model, which gradients it synchronises. It would not
synchronise elements that are turned on later. LoRA's gradients take a few megabytes, so that one all-reduce of a flat
tensor after the backward pass costs less than the wrapper.
"""

from __future__ import annotations

from lightning_fabric import strategies as fabric
from pytorch_lightning.strategies import DDPStrategy, Strategy

from actions.training.strategies.one_device import WithLauncher
from heterolora.common.checks import present
from model.lightning import Resident, make_equal
from options.devices import STRATEGIES, DeviceOptions


def build(devices: DeviceOptions, adapted: bool) -> Strategy:
    if adapted:
        return FlatDDPStrategy()  # correct for any set of elements that are on
    return PlainDDPStrategy(find_unused_parameters=STRATEGIES[devices.strategy].finds_unused)


class ScoringStrategy(WithLauncher, fabric.DDPStrategy):
    """The processes of `imp-test`. It wraps no model."""


class PlainDDPStrategy(WithLauncher, DDPStrategy):
    """PyTorch's own wrapper, for a plain model."""


class FlatDDPStrategy(Resident, WithLauncher, DDPStrategy):
    """DDP without the wrapper: the backward pass gives the gradients of this process.

    The task sums them over processes when an accumulation window ends; see `model.task.window`. At that moment
    `requires_grad` decides which gradients are synchronised. It may change between windows, in the same way in all
    processes. `on_before_optimizer_step` sees global gradients, callbacks see local ones in `on_after_backward`.
    """

    def configure_ddp(self) -> None:
        make_equal(present(self.model))
