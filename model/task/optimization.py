"""Optimizer and learning-rate schedule of every task. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dataset.option import above, at_least, idle_without, option, positive_or_unlimited

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim.lr_scheduler import LambdaLR

    from heterolora.search_space import SearchSpace


AUTO = "auto"
#: What `--learning-rate auto` tries: for adapters and a head, and for all weights of a plain model.
RATES, RATES_OF_PLAIN = ((5e-5, 2e-4, 8e-4, 3.2e-3, 1.28e-2), (3e-6, 1.2e-5, 4.8e-5, 1.9e-4, 7.7e-4))


def _warm_up_length(value: int | float) -> str | None:
    fits = value >= 0 and (isinstance(value, int) or value < 1)
    return None if fits else "a number of steps, or a share below 1 written with a point, such as 0.06"


@dataclass(frozen=True)
class Optimization:
    """How the trained parameters are updated."""

    # fmt: off
    optimizer: Literal["adam", "adamw", "sgd"] = option("adamw", "optimizer", old_keys=("training_optimizer",))
    learning_rate: float | Literal["auto"] | None = option(None, "peak learning rate; auto: short trials choose it; by "
        "default 2e-4 for LoRA, and 5e-5 for a plain model", above(0))
    loraplus_ratio: float = option(1.0, "LoRA+: learning rate of B as a multiple of the learning rate of A", above(0))
    weight_decay: float = option(0.0, "weight decay of matrices (never of biases and norms)", at_least(0))
    lr_scheduler: Literal["none", "linear", "cosine_annealing"] = option("linear",
        "learning rate after warm-up: constant, linear to 0, or cosine to --eta-min",
        spellings={"cosine": "cosine_annealing", "constant": "none", "constant_with_warmup": "none"})
    warmup_steps: int | float = option(0.06, "linear warm-up from 0: optimizer steps, or share of the run",
        _warm_up_length)
    eta_min: float = option(0.0, "final learning rate of cosine_annealing", at_least(0),
        idle=idle_without("lr_scheduler", "cosine_annealing"))
    max_steps: int = option(-1, "most optimizer steps to train, within --max-epochs; -1: no limit",
        positive_or_unlimited, resume="free")


def build_optimizer(
    parameters: Iterable[nn.Parameter], settings: Optimization, space: SearchSpace | None = None
) -> torch.optim.Optimizer:
    """Returns an optimizer with separate groups for matrices, for vectors, and with LoRA+ for every B of `space`.

    LoRA+ (Hayou et al. 2024, arXiv:2402.12354) trains B with `loraplus_ratio` times the learning rate. The schedule
    multiplies all rates by the same factor, so their ratio is constant.
    """
    import torch

    parameters = list(parameters)
    fast = {low_rank.B for low_rank in space or ()} if settings.loraplus_ratio != 1 else set()
    matrices = [p for p in parameters if p.ndim >= 2 and p not in fast]
    vectors = [p for p in parameters if p.ndim < 2]
    all_b = [p for p in parameters if p in fast]
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [
        {"name": "matrices", "params": matrices, "lr": rate, "weight_decay": decay},
        {"name": "vectors", "params": vectors, "lr": rate, "weight_decay": 0.0},
        {"name": "B", "params": all_b, "lr": rate * settings.loraplus_ratio, "weight_decay": decay},
    ]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    return kinds[settings.optimizer]([group for group in groups if group["params"]], lr=rate)


def within(batches: int, limit: int | float) -> int:
    """Returns the number of training batches of an epoch of `batches`, within `--limit-train-batches`."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def steps_of_run(batches: int, accumulate: int, max_epochs: int, max_steps: int) -> float:
    """Returns the optimizer steps of a run with `batches` training batches an epoch on each process. -1: no limit."""
    by_epochs = math.inf if max_epochs == -1 else -(-batches // accumulate) * max_epochs
    return by_epochs if max_steps == -1 else min(by_epochs, max_steps)


def default_rate(plain: bool) -> float:
    """Returns the learning rate if none is given."""
    return 5e-5 if plain else 2e-4


def warm_up(asked: int | float, total: float) -> int:
    """Returns the warm-up steps of a run of `total` steps. A share is rounded, and leaves at least one step."""
    return asked if isinstance(asked, int) else min(round(asked * total), int(total) - 1)


def recipe(settings: Optimization, clipping: float) -> str:
    """Returns a line about the training: optimizer, learning rate, schedule and clipping."""
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
    """Returns the learning rate at optimizer step `step` (from 0) of `total`, relative to the peak.

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
        low = settings.eta_min / settings.learning_rate
        return low + (1.0 - low) * (1.0 + math.cos(math.pi * done)) / 2.0
    return 1.0


def build_scheduler(optimizer: torch.optim.Optimizer, total: float, settings: Optimization) -> dict[str, Any]:
    """Returns Lightning's description of a scheduler that steps with the optimizer."""
    import torch

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, total, settings))
    return {"scheduler": schedule, "interval": "step", "name": "learning_rate"}


def coming_rates(schedule: LambdaLR, group: int) -> Iterator[float]:
    """The learning rates of a group of parameters at the next optimizer steps."""
    peak, factor = schedule.base_lrs[group], schedule.lr_lambdas[group]
    return (peak * factor(step) for step in itertools.count(schedule.last_epoch))
