"""One optimizer step minimises the mean loss over its accumulation window, on all processes:

    gradient of the step = ∇ (sum of the losses) / (sum of the counts)

Rows or target tokens are counted. Batches and processes differ in their counts, so the average of their mean losses has
another gradient. Therefore losses and counts are summed, and divided once, when the window is complete. Then n batches
of a window give the gradient of one batch with the same rows, and so does a shorter window at the end of an epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn

from heterolora.common.checks import present
from heterolora.common.distributed import check_agreement, own_rows, sum_over_ranks, world_size
from heterolora.saliency.problem import Loss


class Window:
    """Sums the losses of an accumulation window, and corrects the accumulated gradients at its end. Usage::

        window.start()
        window.add(loss).backward(), window.add(loss).backward(), …
        mean = window.finish(optimizer)  # before unscaling and clipping

    The count of the window is known at its end only. Until then each loss is divided by `unit`, the count of the first
    batch, so that gradients have the magnitude of those of a mean loss, and float16 does not overflow. `finish`
    multiplies by `unit` and divides by the count of the window.

    Attributes:
        share: after `finish`, the factor of this process's accumulated gradient. The gradient of the step is the sum of
            share · gradient over processes.
    """

    share: Tensor

    def __init__(self) -> None:
        self._unit: Tensor | None = None
        self._sums: Tensor | None = None  # (2,): the loss and the count of this process
        self._agreed: list[tuple[int, int]] | None = None

    def start(self) -> None:
        self._unit = self._sums = None

    def add(self, loss: Loss, averaged: bool = False) -> Tensor:
        """Add a batch, and return the loss of its backward pass.

        `averaged` says that the backward pass averages gradients over processes, as DistributedDataParallel does. Then
        all processes need the same `unit`.
        """
        sums = torch.stack([loss.total.detach(), loss.count.to(loss.total.dtype)])
        if self._unit is None:
            count = sum_over_ranks(sums[1]) / world_size() if averaged else sums[1]
            self._unit = count.clamp(min=1)
        self._sums = sums if self._sums is None else self._sums + sums
        return loss.total * (1 / self._unit)

    @torch.no_grad()
    def finish(self, optimizer: torch.optim.Optimizer, divided_by: int = 1, averaged: bool = False) -> Tensor:
        """Turn the accumulated gradients into the gradient of the step. Returns the mean loss of the window.

        Args:
            optimizer: of the trained parameters.
            divided_by: a factor by which the losses were divided after `add`.
            averaged: see `add`.

        Raises UserError if the processes disagree about which parameters are trained.
        """
        weight, sums, world = present(self._unit) * divided_by, present(self._sums), world_size()
        places = [
            (g, i)
            for g, group in enumerate(optimizer.param_groups)
            for i, p in enumerate(group["params"])
            if p.requires_grad
        ]
        parameters = [optimizer.param_groups[g]["params"][i] for g, i in places]
        if world == 1 or averaged:
            total, count = _total_and_count(sum_over_ranks(sums))
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_([own_rows(gradient) for gradient in gradients], world * weight / count)
        else:
            if places != self._agreed:  # one small collective whenever the set of trained parameters changes
                check_agreement({"which parameters are trained": places})
                self._agreed = places
            total, count = _sum_gradients(parameters, weight, sums)
        self.share = weight / count
        return total / count


def _sum_gradients(parameters: Sequence[nn.Parameter], weight: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Make every gradient the sum of weight · gradient over processes, divided by the count in `sums`.

    Returns the loss and the count of all processes. One all-reduce of a flat tensor carries all of it.
    """
    for parameter in parameters:
        if parameter.grad is None:  # only another process used it
            parameter.grad = torch.zeros_like(parameter)
    own = [present(parameter.grad) for parameter in parameters]
    flat = torch.cat([gradient.reshape(-1).float() for gradient in own])
    flat = torch.cat([flat.mul_(weight), sums.float()])
    distributed.all_reduce(flat)
    gradients, (total, count) = flat[:-2], _total_and_count(flat[-2:].clone())  # not a view, which would keep all
    gradients.div_(count)
    for mine, gradient in zip(own, gradients.split([each.numel() for each in own]), strict=True):
        mine.copy_(gradient.view_as(mine))
    return total, count


def _total_and_count(sums: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and the count. A window without any target, such as one of truncated rows, has gradient 0."""
    total, count = sums
    return total, count.clamp(min=1)
