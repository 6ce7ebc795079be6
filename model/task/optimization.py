"""Optimizer and learning-rate schedule of every task."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from heterolora.elements.search_space import SearchSpace
from options.optimization import Optimization


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Optimization, space: SearchSpace | None = None
) -> torch.optim.Optimizer:
    """Return an optimizer with separate groups for matrices, for vectors, and with LoRA+ for every B of `space`.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) trains B with `loraplus_ratio` times the learning rate. The schedule
    multiplies all rates by the same factor, so their ratio is constant.
    """
    parameters = list(parameters)
    fast = {low_rank.B for low_rank in space or ()} if settings.loraplus_ratio != 1 else set()
    matrices = [p for p in parameters if p.ndim >= 2 and p not in fast]
    vectors = [p for p in parameters if p.ndim < 2]
    all_b = [p for p in parameters if p in fast]
    rate, decay = settings.rate, settings.weight_decay
    groups = [
        {"name": "matrices", "params": matrices, "lr": rate, "weight_decay": decay},
        {"name": "vectors", "params": vectors, "lr": rate, "weight_decay": 0.0},
        {"name": "B", "params": all_b, "lr": rate * settings.loraplus_ratio, "weight_decay": decay},
    ]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[settings.optimizer]([group for group in groups if group["params"]], lr=rate)


def batches_within(batches: int, limit: int | float) -> int:
    """Return the number of training batches of an epoch of `batches`, within `--limit-train-batches`."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def steps_of_run(batches: int, accumulate: int, max_epochs: int | None, max_steps: int) -> float:
    """Return the optimizer steps of a run with `batches` training batches an epoch on each process. -1: no limit."""
    by_epochs = math.inf if max_epochs is None or max_epochs == -1 else -(-batches // accumulate) * max_epochs
    return by_epochs if max_steps == -1 else min(by_epochs, max_steps)


def warm_up(asked: int | float, total: float) -> int:
    """Return the warm-up steps of a run of `total` steps. A share is rounded, and leaves at least one step."""
    return asked if isinstance(asked, int) else min(round(asked * total), int(total) - 1)


def recipe(settings: Optimization, clipping: float) -> str:
    """Return a line about the training: optimizer, learning rate, schedule and clipping."""
    ends = {"none": "constant", "linear": "linear to 0", "cosine_annealing": f"cosine to {settings.eta_min:g}"}
    steps = settings.warmup_steps
    parts = [
        settings.optimizer,
        f"learning rate {settings.learning_rate:g}, {ends[settings.lr_scheduler]}",
        f"warm-up of {steps} steps" if isinstance(steps, int) else f"warm-up of {steps:.3g} of the run",
        f"gradient norm clipped at {clipping:g}" if clipping else "no clipping",
    ]
    return f"training: {', '.join(parts)}"


def rate_factor(step: int, total: float, settings: Optimization) -> float:
    """Return the learning rate at optimizer step `step` (from 0) of `total`, relative to the peak.

    Linear: decreases to 0 at `total`. Cosine (Loshchilov & Hutter 2017, without restarts):
    η_min + (η − η_min) · (1 + cos(π·t)) / 2 where t is the completed share of the steps after warm-up.
    """
    warmup = warm_up(settings.warmup_steps, total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if settings.lr_scheduler == "linear":
        return 1.0 - done
    if settings.lr_scheduler == "cosine_annealing":
        low = settings.eta_min / settings.rate
        return low + (1.0 - low) * (1.0 + math.cos(math.pi * done)) / 2.0
    return 1.0


def build_scheduler(optimizer: torch.optim.Optimizer, total: float, settings: Optimization) -> dict[str, Any]:
    """Return Lightning's description of a scheduler that steps with the optimizer."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, settings))
    return {"scheduler": schedule, "interval": "step", "name": "learning_rate"}


def coming_rates(schedule: Any, group: int) -> Iterator[float]:
    """The learning rates of a group of parameters at the next optimizer steps, by the LambdaLR `schedule`."""
    peak, factor = schedule.base_lrs[group], schedule.lr_lambdas[group]
    return (peak * factor(step) for step in itertools.count(schedule.last_epoch))
