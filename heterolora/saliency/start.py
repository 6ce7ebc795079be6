"""Where A starts: along directions that matter, instead of at random. B stays 0, so the network computes the same.

`gradient`: the leading right singular vectors of the gradient of the weight at the place. With B = 0, the first step of
B moves the weight by -s² G Aᵀ A, so these rows of A keep the largest part of G that rank r allows.
`activation`: the leading principal directions of the inputs (EVA: Paischer et al. 2024, arXiv:2410.07170).
`orthogonal`: random orthonormal directions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, distributed

from heterolora.distributed import world_size
from heterolora.saliency.heuristics.activation import inputs
from heterolora.saliency.no_trace import no_trace
from heterolora.saliency.problem import Problem
from heterolora.saliency.weight_gradients import gaussian, leading_directions, weight_gradients

Start = Literal["kaiming", "gradient", "activation", "orthogonal"]


def start(problem: Problem, kind: Start, seed: int = 0) -> None:
    """Set A of every element, the same on every process; `kaiming` leaves it as it is.

    The rows are orthogonal, of length 1 / √3, as Kaiming's are on average. Rows beyond the width of the place keep
    their values. `orthogonal` needs no batches.
    """
    if kind == "kaiming":
        return
    with no_trace(problem.network, problem.space):
        found = _directions(problem, kind, seed)
    with torch.no_grad():
        for low_rank, directions in zip(problem.space, found, strict=True):
            low_rank.A[: directions.shape[1]] = directions.t() / math.sqrt(3)
            if world_size() > 1:  # machines of different kinds may round differently
                distributed.broadcast(low_rank.A, src=0)


def _directions(problem: Problem, kind: Start, seed: int) -> list[Tensor]:
    """Orthonormal columns (in, k) for each element."""
    if kind == "activation":
        return [place.directions()[0] for place in inputs(problem)]
    elements = problem.space.elements
    if kind == "gradient":
        gradients = zip(elements, weight_gradients(problem), strict=True)
        return [leading_directions(G.matrix(), element.rank)[2] for element, (G,) in gradients]
    return [
        torch.linalg.qr(
            gaussian(element.in_features, element.rank, seed * len(elements) + index, problem.space.device)
        ).Q
        for index, element in enumerate(elements)
    ]
