"""Optimizer and learning-rate schedule of every task."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from heterolora.search_space import SearchSpace


@dataclass(frozen=True)
class Optimization:
    """How the trained parameters move.

    Attributes:
        optimizer: `adam`, `adamw` or `sgd`.
        learning_rate: the peak.
        weight_decay: of matrices; vectors (biases, norms) are never decayed.
        scheduler: `none`, `linear` or `cosine_annealing`, after warm-up.
        warmup_steps: optimizer steps over which the rate rises linearly from 0.
        eta_min: the rate at which `cosine_annealing` ends.
        max_steps: optimizer steps after which training ends, -1: when its epochs are over.
        loraplus_ratio: learning rate of every element's B as a multiple of all else's.
    """

    optimizer: str = "adamw"
    learning_rate: float = 5e-5
    weight_decay: float = 0.0
    scheduler: str = "none"
    warmup_steps: int = 0
    eta_min: float = 0.0
    max_steps: int = -1
    loraplus_ratio: float = 1.0


_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Optimization, space: SearchSpace | None = None
) -> torch.optim.Optimizer:
    """One optimizer over `parameters`, matrices and vectors apart, and with LoRA+ every B apart from the matrices.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354): B of an element moves at `loraplus_ratio` times the learning rate, in
    wide networks well above 1. The schedule multiplies all rates alike, so their ratio stays.

    Args:
        parameters: what is trained.
        settings: how.
        space: the elements among `parameters`, of an adapted network.
    """
    parameters, fast = list(parameters), set()
    if settings.loraplus_ratio != 1:
        fast = {low_rank.B for low_rank in space or ()}
    matrices = [p for p in parameters if p.ndim >= 2 and p not in fast]
    vectors = [p for p in parameters if p.ndim < 2]
    of_b = [p for p in parameters if p in fast]
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [
        {"name": "matrices", "params": matrices, "lr": rate, "weight_decay": decay},
        {"name": "vectors", "params": vectors, "lr": rate, "weight_decay": 0.0},
        {"name": "B", "params": of_b, "lr": rate * settings.loraplus_ratio, "weight_decay": decay},
    ]
    return _OPTIMIZERS[settings.optimizer]([group for group in groups if group["params"]], lr=rate)


def rate_factor(step: int, total: float, settings: Optimization) -> float:
    """Learning rate at optimizer step `step` (from 0) of `total`, as a share of the peak.

    Linear: falls to 0 at `total`. Cosine (Loshchilov & Hutter 2017, without restarts):
    η_min + (η − η_min) · (1 + cos(π·t)) / 2 with t the share of the steps after warm-up that is done.
    """
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    done = min(1.0, (step - settings.warmup_steps) / max(1, total - settings.warmup_steps))
    if settings.scheduler == "linear":
        return 1.0 - done
    if settings.scheduler == "cosine_annealing":
        low = settings.eta_min / settings.learning_rate
        return low + (1.0 - low) * (1.0 + math.cos(math.pi * done)) / 2.0
    return 1.0


def build_scheduler(optimizer: torch.optim.Optimizer, total: float, settings: Optimization) -> dict[str, Any]:
    """Lightning's description of a scheduler that steps with the optimizer."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, settings))
    return {"scheduler": schedule, "interval": "step", "name": "learning_rate"}
