"""DDP for adapted models: one all-reduce of the trained gradients per optimizer step.

PyTorch's DistributedDataParallel decides once, when it wraps a model, which gradients it synchronises. It would not
synchronise elements that are turned on later. LoRA's gradients take a few megabytes, so that one all-reduce of a flat
tensor after the backward pass costs less than the wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.overrides.distributed import _sync_module_states
from pytorch_lightning.strategies import DDPStrategy
from torch import distributed


class FlatDDPStrategy(DDPStrategy):
    """DDP without the wrapper.

    At every optimizer step `requires_grad` decides which gradients are synchronised. It may change between accumulation
    windows, in the same way in all processes. Gradients are averaged after the last backward pass of the window, and
    before unscaling and clipping: `on_before_optimizer_step` sees global gradients, `on_after_backward` local ones.
    Raises RuntimeError if the processes disagree about which parameters are trained.
    """

    _agreed: tuple[tuple[int, int], ...] | None = None

    def configure_ddp(self) -> None:
        _sync_module_states(self.model)  # the same initial weights everywhere, as the wrapper does
        self._agreed = None

    def optimizer_step(
        self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any
    ) -> Any:
        def closure_and_reduce() -> Any:
            result = closure()
            self._average_gradients(optimizer)
            return result

        return super().optimizer_step(optimizer, closure_and_reduce, model, **kwargs)

    @torch.no_grad()
    def _average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        if self.world_size == 1:
            return
        places = [
            (g, i)
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
            if p.requires_grad
        ]
        self._check_agreement(tuple(places))
        parameters = [optimizer.param_groups[g]["params"][i] for g, i in places]
        for parameter in parameters:
            if parameter.grad is None:  # only another process used it
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.reshape(-1).float() for parameter in parameters])
        distributed.all_reduce(flat)
        flat.div_(self.world_size)
        for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            parameter.grad.copy_(mean.view_as(parameter))

    def _check_agreement(self, places: tuple[tuple[int, int], ...]) -> None:
        """One small collective whenever the set of trained parameters changes."""
        if places == self._agreed:
            return
        everywhere: list[Any] = [None] * self.world_size
        distributed.all_gather_object(everywhere, places)
        if any(other != places for other in everywhere):
            raise RuntimeError("the processes disagree about which parameters are trained")
        self._agreed = places
