"""Σ|A ∘ ∂R/∂A| + Σ|B ∘ ∂R/∂B|, without data (SynFlow: Tanaka et al. 2020, arXiv:2006.05467).

R is the sum of the last hidden state of `heterolora.saliency.positive.PositiveNetwork`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from heterolora.saliency import register
from heterolora.saliency.positive import PositiveNetwork
from heterolora.saliency.problem import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@register(
    "synflow",
    warmup_batches=32,
    needs_base_weights=True,
    scores_experts=False,
    scores_outside=(),
    needs_table=True,
    ignores=("batches", "metric"),
    remark="synflow scores q_proj and k_proj 0, because no path of its linear network leads through them",
)
def synflow(problem: Problem) -> list[float]:
    network = PositiveNetwork(cast("PreTrainedModel", problem.network), problem.space)
    parameters = [parameter for factors in network.factors.values() for parameter in (factors.A, factors.B)]
    gradients = torch.autograd.grad(network.flow(), parameters, materialize_grads=True)
    parts = [(parameter * gradient).detach().sum() for parameter, gradient in zip(parameters, gradients, strict=True)]
    return network.unscaled(torch.stack(parts).view(-1, 2).sum(1).tolist())
