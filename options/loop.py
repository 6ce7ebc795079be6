"""The options of the training loop."""

from __future__ import annotations

from dataclasses import dataclass

from options.actions import MEASURING
from options.declare import idle_with, option
from options.ranges import at_least, count_or_share, positive_or_unlimited

EPOCHS, MOST_EPOCHS, STEPS = 3, 20, 300  # the length of a run if --max-epochs is not given


@dataclass(frozen=True)
class LoopOptions:
    """The training loop, under Lightning's own names."""

    max_epochs: int | None = option(
        None,
        f"epochs to train; -1: no limit; by default {EPOCHS}, or as many as {STEPS} steps need, at most {MOST_EPOCHS}",
        positive_or_unlimited,
        resume="free",
        brief="epochs to train (3, or more on small data)",
    )
    limit_train_batches: int | float = option(1.0, "train on N batches, or share of an epoch", count_or_share)
    limit_val_batches: int | float = option(1.0, "validate on N batches, or share", count_or_share, actions=MEASURING)
    limit_test_batches: int | float = option(
        1.0, "test on N batches, or share", count_or_share, actions=MEASURING, resume="free"
    )
    val_check_interval: int | float = option(
        1.0,
        "validate every N batches, or share of an epoch; rounded up to whole accumulation windows",
        count_or_share,
        resume="epoch_end",
    )
    accumulate_grad_batches: int = option(1, "batches per optimizer step", at_least(1))
    gradient_clip_val: float = option(1.0, "clip the gradient's norm; 0: no clipping", at_least(0))
    log_every_n_steps: int = option(
        10, "steps between two points of a curve", at_least(1), resume="free", idle=idle_with("logger", "none")
    )
