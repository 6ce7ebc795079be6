"""DDP for adapted models, without PyTorch's wrapper.

PyTorch's DistributedDataParallel decides once, when it wraps a model, which gradients it synchronises. It would not
synchronise elements that are turned on later. LoRA's gradients take a few megabytes, so that one all-reduce of a flat
tensor after the backward pass costs less than the wrapper.
"""

from __future__ import annotations

from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.strategies import DDPStrategy


class FlatDDPStrategy(DDPStrategy):
    """DDP without the wrapper: the backward pass gives the gradients of this process.

    The task sums them over processes when an accumulation window ends; see `model.task.window`. At that moment
    `requires_grad` decides which gradients are synchronised. It may change between windows, in the same way in all
    processes. `on_before_optimizer_step` sees global gradients, callbacks see local ones in `on_after_backward`.
    """

    def configure_ddp(self) -> None:
        _sync_module_states(self.model)  # the same initial weights everywhere, as the wrapper does
