"""Scores from the training batches, without any additional forward or backward pass.

An element that is on has its gradients. An element that is off gets a probe, which computes the gradients that it would
have. The gradients of training are bit for bit the same with and without probes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from heterolora.common.distributed import sum_over_ranks, world_size
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.gradients import GradientHeuristic
from heterolora.saliency.probe import Probe


class TrainingGradients:
    """Σ `heuristic.of_batch(gradient)` over optimizer steps, for A and B of every element, on or off.

    The gradient is that of the global batch, neither clipped nor scaled. For an element that is on, it is the gradient
    that the optimizer gets. For an element that is off, it is the gradient that it would have without its own dropout.
    An accumulation window counts as one batch, with the loss that its step minimises. The sums are the same on every
    process, so the `state_dict` of one process is enough. Usage::

        gradients.start()                       # before the first forward pass of a window
        loss.backward(), loss.backward(), …     # the window
        gradients.collect()                     # before clipping, optimizer.step() and zero_grad()
        …
        gradients.stop()
        scores, _ = gradients.scores(), gradients.reset()

    No element may be switched while it records. While it does not record, it has no effect on the network. `windows`
    is the number of windows in the sums.
    """

    def __init__(self, space: SearchSpace, heuristic: GradientHeuristic) -> None:
        self.space, self.heuristic = space, heuristic
        self.recording, self.windows = False, 0
        # A and Bᵀ of each element in turn, in one tensor, so that one operation covers all elements.
        self._window: Tensor | None = None
        self._total: Tensor | None = None

    def start(self) -> None:
        """Record from the next forward pass on. Has no effect if it records already."""
        if self.recording:
            return
        self.recording, self._window = True, self._zeros()
        off = [each for each in self._each(self._window) if not each[0].enabled]
        if not off:
            return
        anchor = self._window.new_zeros(0, requires_grad=True)
        trained = torch.stack([low_rank.B.detach().any() for low_rank, _, _ in off]).tolist()
        for (low_rank, of_A, of_Bt), is_trained in zip(off, trained, strict=True):
            low_rank.probe = Probe(low_rank, of_A, of_Bt, anchor, is_trained)

    def stop(self) -> None:
        self.recording, self._window = False, None
        for low_rank in self.space:
            low_rank.probe = None

    @torch.no_grad()
    def collect(
        self, loss_scale: float | None = None, share: Tensor | float | None = None, stepped: Sequence[Tensor] = ()
    ) -> None:
        """Add the gradients of the window that has just ended. Every process must call it.

        The `.grad` of elements that are on must be final: of all processes and without a loss scale. The gradients of
        elements that are off are summed over processes and unscaled here.

        Args:
            loss_scale: the factor by which a gradient scaler (float16) has multiplied the loss. Then a window with
                gradients that are not finite is skipped.
            share: the factor of this process's gradients in the sum; by default 1 / number of processes, the average.
            stepped: with `loss_scale`, the gradients of all parameters of the optimizer, such as those of a head. If
                one of them is not finite, the scaler skips the step, so the window is skipped here too.
        """
        if self._window is None:
            raise RuntimeError("`collect` needs a call of `start` before")
        gradients = sum_over_ranks(self._window * (1 / world_size() if share is None else share))
        if loss_scale is not None:
            gradients = gradients / loss_scale
        for low_rank, of_A, of_Bt in self._each(gradients):
            if low_rank.enabled and low_rank.A.grad is not None and low_rank.B.grad is not None:
                of_A.copy_(low_rank.A.grad)
                of_Bt.copy_(low_rank.B.grad.t())
        if loss_scale is None or bool(get_total_norm([gradients, *stepped], math.inf).isfinite()):
            total = self._zeros() if self._total is None else self._total.to(gradients.device)
            self._total = total + self.heuristic.of_batch(gradients)  # a new tensor: `state_dict` may hold the old one
            self.windows += 1
        self._window.zero_()

    def totals(self) -> list[Tensor]:
        """The sums for A and B of each element in turn, as `GradientHeuristic.scores` takes them."""
        total = self._zeros() if self._total is None else self._total.to(self.space.device)
        return [part for _, of_A, of_Bt in self._each(total) for part in (of_A, of_Bt.t())]

    def scores(self) -> dict[str, float]:
        """Key of an element -> its score, in the order of the search space; the same on every process."""
        values = self.heuristic.scores(self.space.parameters, self.totals())
        return {element.key: value for element, value in zip(self.space.elements, values, strict=True)}

    def reset(self) -> None:
        self.windows, self._total = 0, None

    def state_dict(self) -> dict[str, Any]:
        """The sums; they are complete between windows."""
        return {"windows": self.windows, "total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the sums of `state_dict`. Whether it records is not part of the state."""
        self.windows, self._total = state["windows"], state["total"]

    def _zeros(self) -> Tensor:
        return torch.zeros(sum(element.parameters for element in self.space.elements), device=self.space.device)

    def _each(self, flat: Tensor) -> Iterator[tuple[LowRank, Tensor, Tensor]]:
        """Each element with its parts of `flat`: A (r, in) and Bᵀ (r, out)."""
        parts = iter(torch.split(flat, [parameter.numel() for parameter in self.space.parameters]))
        for low_rank in self.space:
            rows = len(low_rank.A)
            yield low_rank, next(parts).view(rows, -1), next(parts).view(rows, -1)


def recorded(batch: int, until_due: int, limit: int, window: int = 1) -> bool:
    """Whether to record batch `batch` (from 0, of the epoch) for the scores that are due in `until_due` batches.

    Only whole accumulation windows are recorded, which begin at multiples of `window`: those with any of the last
    `limit` batches before the scores are due.
    """
    return until_due - (window - batch % window) < limit
