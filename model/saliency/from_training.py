"""Scores from the training batches themselves: no batch, no forward and no backward pass of their own.

An element that is on has its gradients anyway. One that is off gets a probe, which computes what they would be from
what passes by its place. Training's own gradients are bit for bit the same with it and without.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.distributed import world_size
from model.saliency.gradients import GradientHeuristic, sum_each_over_ranks, trained_parameters
from model.saliency.probe import Probe
from model.search_space import SearchSpace


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
        self._totals: list[Tensor] = []  # shaped like A and B of each element in turn; none before the first window

    def start(self) -> None:
        """Record from the next forward pass on; nothing happens if it does already."""
        if self.recording:
            return
        self.recording = True
        off = [element.low_rank for element in self.space if not element.low_rank.enabled]
        if not off:
            return
        anchor = torch.zeros(0, device=off[0].B.device, requires_grad=True)
        trained = torch.stack([low_rank.B.detach().any() for low_rank in off]).tolist()
        for low_rank, is_trained in zip(off, trained, strict=True):
            low_rank.probe = Probe(low_rank, anchor, is_trained)

    def stop(self) -> None:
        """Record no more; what was collected stays."""
        self.recording = False
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
        if not self.recording:
            raise RuntimeError("there is nothing to collect before `start`")
        gradients = self._of_window(world_size() * (loss_scale or 1.0))
        if loss_scale is not None and not torch.stack([gradient.isfinite().all() for gradient in gradients]).all():
            return
        totals = self._totals or [torch.zeros_like(gradient) for gradient in gradients]
        self._totals = [
            total.to(gradient.device).add_(self.heuristic.of_batch(gradient))
            for total, gradient in zip(totals, gradients, strict=True)
        ]
        self.windows += 1

    def _of_window(self, divisor: float) -> list[Tensor]:
        """Gradients of A and B of each element in turn."""
        probes = [element.low_rank.probe for element in self.space if not element.low_rank.enabled]
        local = [part for probe in probes for part in (probe.of_A, probe.of_Bt)]
        found = iter(sum_each_over_ranks(local) if local else ())
        gradients: list[Tensor] = []
        for element in self.space:
            A, B = element.low_rank.A, element.low_rank.B
            if element.low_rank.enabled:
                gradients += [torch.zeros_like(p) if p.grad is None else p.grad for p in (A, B)]
            else:
                gradients += [next(found) / divisor, next(found).t() / divisor]
        for probe in probes:
            probe.clear()
        return gradients

    def totals(self) -> list[Tensor]:
        """The sums for A and B of each element in turn, as `GradientHeuristic.scores` takes them."""
        parameters = trained_parameters(self.space.elements)
        totals = self._totals or [torch.zeros_like(parameter) for parameter in parameters]
        return [total.to(parameter.device) for total, parameter in zip(totals, parameters, strict=True)]

    def scores(self) -> dict[str, float]:
        """Key of an element → its score, in the order of the search space; the same on every process."""
        values = self.heuristic.scores(trained_parameters(self.space.elements), self.totals())
        return {element.key: value for element, value in zip(self.space, values, strict=True)}

    def reset(self) -> None:
        """Forget the sums."""
        self.windows, self._totals = 0, []

    def state_dict(self) -> dict[str, Any]:
        """The sums; complete between windows."""
        return {"windows": self.windows, "totals": list(self._totals)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the sums of `state_dict`. Whether to record is not part of them."""
        self.windows, self._totals = state["windows"], [total.clone() for total in state["totals"]]


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
