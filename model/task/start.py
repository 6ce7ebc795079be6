"""Where A starts: along directions that matter, instead of at random. B stays 0, so the network computes the same.

`gradient`: the leading right singular vectors of the gradient G of the weight at the place. With B = 0, the first step
of B moves the weight by -s² G Aᵀ A, so these rows of A keep the largest part of G that rank r allows.
`activation`: the leading principal directions of the inputs (EVA: Paischer et al. 2024, arXiv:2410.07170).
`orthogonal`: random orthonormal directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, distributed

from heterolora.common.distributed import world_size
from heterolora.common.errors import UserError
from heterolora.elements.element import Element
from heterolora.saliency.heuristics.activation import inputs
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.problem import Batch, Problem
from heterolora.saliency.warm_up import is_fresh
from heterolora.saliency.weight_gradients import gaussian, leading_directions, weight_gradients
from model.task.fine_tuning import task_of
from model.task.scoring import scoring_problem

Start = Literal["gradient", "activation", "orthogonal"]


class StartElements(pl.Callback):
    """Sets A of every element when training starts, unless the elements are trained already.

    Args:
        kind: `--lora-init`.
        seed: of random directions.
        batches: (rank, number of processes) -> the scoring batches of that process.
        note: prints a line for the user.
    """

    def __init__(
        self, kind: Start, seed: int, batches: Callable[[int, int], Iterable[Batch]], note: Callable[[str], None]
    ) -> None:
        self.kind, self.seed, self.batches, self.note = kind, seed, batches, note

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        task = task_of(pl_module)
        if not task.space:
            self.note(f"--lora-init {self.kind} has no effect: the model has no element, only its head is trained")
            return
        share = [] if self.kind == "orthogonal" else self.batches(trainer.global_rank, trainer.world_size)
        on_device = [trainer.strategy.batch_to_device(batch) for batch in share]
        precision = trainer.precision_plugin.forward_context
        problem = scoring_problem(task, on_device, tolerance=0.0, precision=precision)
        if is_fresh(problem):
            with task.uncompiled():
                start(problem, self.kind, self.seed)
        else:
            self.note(f"--lora-init {self.kind} has no effect: the elements are trained already (B is not 0)")


def start(problem: Problem, kind: Start, seed: int = 0) -> None:
    """Set A of every element, the same on every process.

    The rows are orthogonal, of length 1 / √3, as Kaiming's are on average. Rows beyond the width of the place keep
    their values. Each expert has its own directions. `orthogonal` needs no batches. Raises UserError if a direction is
    not finite.
    """
    with no_trace(problem.network, problem.space):
        found = _directions(problem, kind, seed)
        if not all(bool(directions.isfinite().all()) for directions in found):
            found = _directions(problem.unscaled(), kind, seed)
    for low_rank, directions in zip(problem.space, found, strict=True):
        if not bool(directions.isfinite().all()):
            at = f"--lora-init {kind}: the {kind} at {low_rank.element.key} is not finite"
            raise UserError(at, "expected a finite loss; check the model and --precision")
        with torch.no_grad():
            low_rank.by_expert[0][:, : directions.shape[2]] = directions.mT / math.sqrt(3)
            if world_size() > 1:  # machines of different kinds may round differently
                distributed.broadcast(low_rank.A, src=0)


def _directions(problem: Problem, kind: Start, seed: int) -> list[Tensor]:
    """Return orthonormal columns (experts, in, k) for each element."""
    if kind == "activation":
        return [place.directions()[0].unsqueeze(0) for place in inputs(problem)]
    elements = problem.space.elements
    if kind == "gradient":
        gradients = zip(elements, weight_gradients(problem), strict=True)
        of_experts = [(element.rank, _by_expert(G.matrix(), element)) for element, (G,) in gradients]
        return [torch.stack([leading_directions(M, rank)[2] for M in each]) for rank, each in of_experts]
    device, first = problem.space.device, seed * len(elements)
    draws = [
        gaussian(element.experts * element.in_features, element.rank, first + index, device)
        for index, element in enumerate(elements)
    ]
    return [torch.linalg.qr(_by_expert(draw, element)).Q for element, draw in zip(elements, draws, strict=True)]


def _by_expert(stacked: Tensor, element: Element) -> Tensor:
    """(experts · rows, columns) -> (experts, rows, columns)."""
    return stacked.view(element.experts, -1, stacked.shape[1])
