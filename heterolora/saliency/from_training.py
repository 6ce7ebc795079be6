"""Scores from the training batches themselves: no batch, no forward and no backward pass of their own.

An element that is on has its gradients anyway. One that is off gets a probe, which computes what they would be from
what passes by its place. Training's own gradients are bit for bit the same with it and without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from heterolora.distributed import sum_over_ranks, world_size
from heterolora.saliency.gradients import GradientHeuristic, trained_parameters
from heterolora.saliency.probe import Probe
from heterolora.search_space import Element, SearchSpace


class TrainingGradients:
    """Σ `heuristic.of_batch(gradient)` over optimizer steps, for A and B of every element, on or off.

    The gradient is the one of the global batch, neither clipped nor scaled: for an element that is on, the one that the
    optimizer gets; for one that is off, what it would be, but for the element's own dropout. An accumulation window
    counts as one batch, whose loss is what its step minimises. The sums are the same on every process, so that one
    process's `state_dict` is everybody's. How it is used::

        gradients.start()                       # before the first forward pass of a window
        loss.backward(), loss.backward(), …     # the window
        gradients.collect()                     # before clipping, optimizer.step() and zero_grad()
        …
        gradients.stop()
        scores, _ = gradients.scores(), gradients.reset()

    While it records, no element may be switched. While it doesn't, the network is as if this object did not exist.

    Args:
        space: the search space.
        heuristic: what is summed, and what becomes of the sum.

    Attributes:
        recording: between `start` and `stop`.
        windows: how many are in the sums.
    """

    def __init__(self, space: SearchSpace, heuristic: GradientHeuristic) -> None:
        self.space, self.heuristic = space, heuristic
        self.recording, self.windows = False, 0
        # A and Bᵀ of each element in turn, in one piece, so that what is done to all of them is one operation.
        self._window: Tensor | None = None
        self._total: Tensor | None = None

    def start(self) -> None:
        """Record from the next forward pass on; nothing happens if it does already."""
        if self.recording:
            return
        self.recording = True
        self._window = self._zeros()
        off = [
            (element.low_rank, of_A, of_Bt)
            for element, of_A, of_Bt in self._each(self._window)
            if not element.low_rank.enabled
        ]
        if not off:
            return
        anchor = self._window.new_zeros(0, requires_grad=True)
        trained = torch.stack([low_rank.B.detach().any() for low_rank, _, _ in off]).tolist()
        for (low_rank, of_A, of_Bt), is_trained in zip(off, trained, strict=True):
            low_rank.probe = Probe(low_rank, of_A, of_Bt, anchor, is_trained)

    def stop(self) -> None:
        """Record no more; what was collected stays."""
        self.recording, self._window = False, None
        for element in self.space:
            element.low_rank.probe = None

    @torch.no_grad()
    def collect(self, loss_scale: float | None = None) -> None:
        """Take the gradients of the window that has just ended. Every process has to call it.

        The `.grad` of elements that are on must be final here: averaged over processes, free of any loss scale. Those
        of elements that are off are averaged and unscaled here.

        Args:
            loss_scale: what a gradient scaler (float16) has multiplied the loss by. A window with gradients that are
                not finite is left out then, as the scaler leaves out its step.
        """
        if self._window is None:
            raise RuntimeError("there is nothing to collect before `start`")
        gradients = sum_over_ranks(self._window)
        if world_size() > 1 or loss_scale is not None:
            gradients = gradients / (world_size() * (loss_scale or 1.0))
        for element, of_A, of_Bt in self._each(gradients):
            A, B = element.low_rank.A, element.low_rank.B
            if element.low_rank.enabled and A.grad is not None and B.grad is not None:
                of_A.copy_(A.grad)
                of_Bt.copy_(B.grad.t())
        if loss_scale is None or bool(gradients.isfinite().all()):
            total = self._zeros() if self._total is None else self._total.to(gradients.device)
            self._total = total + self.heuristic.of_batch(gradients)  # anew: a state that was handed out stays
            self.windows += 1
        self._window.zero_()

    def totals(self) -> list[Tensor]:
        """The sums for A and B of each element in turn, as `GradientHeuristic.scores` takes them."""
        total = self._zeros() if self._total is None else self._total.to(self._device)
        return [part for _, of_A, of_Bt in self._each(total) for part in (of_A, of_Bt.t())]

    def scores(self) -> dict[str, float]:
        """Key of an element → its score, in the order of the search space; the same on every process."""
        values = self.heuristic.scores(trained_parameters(self.space.elements), self.totals())
        return {element.key: value for element, value in zip(self.space, values, strict=True)}

    def reset(self) -> None:
        """Forget the sums."""
        self.windows, self._total = 0, None

    def state_dict(self) -> dict[str, Any]:
        """The sums; complete between windows."""
        return {"windows": self.windows, "total": self._total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of `state_dict`. Whether to record is not part of them."""
        self.windows, self._total = state["windows"], state["total"]

    @property
    def _device(self) -> torch.device:
        return self.space.elements[0].low_rank.A.device

    def _zeros(self) -> Tensor:
        return torch.zeros(sum(element.parameters for element in self.space), device=self._device)

    def _each(self, flat: Tensor) -> Iterator[tuple[Element, Tensor, Tensor]]:
        """Each element's share: of A (r, in) and of Bᵀ (r, out)."""
        sizes = [part.numel() for part in trained_parameters(self.space.elements)]
        parts = iter(flat.split(sizes))
        for element in self.space:
            rank = element.low_rank.rank
            yield element, next(parts).view(rank, -1), next(parts).view(rank, -1)


def recorded(batch: int, until_due: int, limit: int, window: int = 1) -> bool:
    """Whether to record batch `batch` (from 0, of the epoch) for the scores that are due in `until_due` batches.

    Windows are recorded whole: those that hold any of the last `limit` batches before the scores are due.

    Args:
        batch: index within the epoch; windows begin at multiples of `window`.
        until_due: batches up to the next scores, this one included.
        limit: `--imp-limit-test-batches` as a number of batches.
        window: batches of an accumulation window.
    """
    after_this_window = until_due - (window - batch % window)
    return after_this_window < limit
