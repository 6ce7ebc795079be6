"""The options of optimizer and learning-rate schedule. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heterolora.common.checks import ABOVE_0, Condition
from heterolora.elements.task import CLASSIFYING
from options.declare import idle_without, option
from options.ranges import at_least, positive_or_unlimited

AUTO = "auto"

#: What `--learning-rate auto` tries: for adapters and a head, and for all weights of a plain model.
RATES, RATES_OF_PLAIN = ((5e-5, 2e-4, 8e-4, 3.2e-3, 1.28e-2), (3e-6, 1.2e-5, 4.8e-5, 1.9e-4, 7.7e-4))


_warm_up_length = Condition(
    lambda value: value >= 0 and (isinstance(value, int) or value < 1),
    "a number of steps, or a share below 1 written with a point, such as 0.06",
)


def _no_classes(run: Mapping[str, Any]) -> str | None:
    entry = run["entry"]
    if run["regression"] if entry is None else entry.regression:
        return "on a regression"
    if entry is None and run["multi_label"]:
        return "on multi-label classification"
    return idle_without("task", *CLASSIFYING)(run)


@dataclass(frozen=True)
class Optimization:
    """How the trained parameters are updated."""

    # fmt: off
    optimizer: Literal["adam", "adamw", "sgd"] = option("adamw", "optimizer", old_keys=("training_optimizer",))
    learning_rate: float | Literal["auto"] | None = option(None, "peak learning rate; auto: short trials choose it; by "
        "default 2e-4 for LoRA, and 5e-5 for a plain model", ABOVE_0,
        brief="peak learning rate, or auto (LoRA: 2e-4)")
    loraplus_ratio: float = option(1.0, "learning rate of B as a multiple of that of A (LoRA+)", ABOVE_0)
    class_weights: Literal["equal", "balanced"] = option("equal", "what has equal weight in the training loss; "
        "equal: the rows; balanced: the classes, each with all its rows together", idle=_no_classes)
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
    # fmt: on

    @property
    def rate(self) -> float:
        """The learning rate, once it is decided."""
        assert isinstance(self.learning_rate, int | float)
        return self.learning_rate


def default_rate(plain: bool) -> float:
    """The learning rate if none is given."""
    return 5e-5 if plain else 2e-4
