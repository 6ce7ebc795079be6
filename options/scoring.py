"""The options of scoring and reallocation. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from heterolora import saliency
from heterolora.choosing.allocation import Mode
from heterolora.choosing.ranks import Budget
from heterolora.common.checks import RATE
from options.actions import DYREALLOC, IMP_TEST, TRAIN
from options.declare import Idle, flag_of, idle_without, option
from options.ranges import at_least, below_1, count_or_share, share

# One of them is given.
BUDGETS = ("turn_on_percentile", "budget_parameters", "budget_time", "shrink_tolerance")
_LEAST_SHARE = 1e-9  # of the elements: one of them
DEFAULT_SHARE = 0.25  # of --turn-on-percentile

_IMP_TEST, _DYREALLOC = (IMP_TEST,), (DYREALLOC,)


def default_heuristic(run: Mapping[str, Any]) -> str:
    """The heuristic that a run uses if none is given.

    A search during training scores some elements while they are on. Only `gain` compares these fairly with elements
    that are off, and it needs scoring batches of its own. A budget that shrinks compares only elements that are on.
    """
    if run["action"] != DYREALLOC:
        return "grad_norm"
    if run["budget_schedule"] == "shrink":
        return "snip"
    return "gain" if run["imp_source"] == "dedicated" else "grad_norm"


def _heuristic(run: Mapping[str, Any]) -> str:
    return run["importance_test_name"] or default_heuristic(run)


def _by_training(run: Mapping[str, Any]) -> str | None:
    """A budget that shrinks is scored by the gradients of every training step."""
    shrinks = run["action"] == DYREALLOC and run["budget_schedule"] == "shrink"
    return "with --budget-schedule shrink" if shrinks else None


def _ignored(what: str) -> Idle:
    """The option has no effect on the scores of a heuristic that ignores `what`."""

    def idle(run: Mapping[str, Any]) -> str | None:
        name = _heuristic(run)
        return f"with --importance-test-name {name}" if what in saliency.get(name).ignores else None

    return idle


def _reads_no_batches(run: Mapping[str, Any]) -> str | None:
    start, trains = run["lora_init"], run["action"] != IMP_TEST
    if trains and start in ("gradient", "activation"):
        return None
    return f"with --lora-init {start}" if run["action"] == TRAIN else _by_training(run) or _ignored("batches")(run)


def _needed_by_budget(run: Mapping[str, Any]) -> str | None:
    return None if run["budget_time"] is None else "with --budget-time, which needs the time"


def _without_warm_up(run: Mapping[str, Any]) -> str | None:
    if run["imp_warmup_batches"] is not None:
        return None if run["imp_warmup_batches"] else "with --imp-warmup-batches 0"
    name = _heuristic(run)
    return None if saliency.get(name).warmup_batches else f"with {name}, which has no warm-up by default"


@dataclass(frozen=True)
class ScoringOptions:
    """How the elements are scored."""

    # fmt: off
    importance_test_name: str | None = option(None, "heuristic that scores the elements; by default gain in "
        "train-dyrealloc, where grad_norm, snip and fisher favour elements that are on, snip with --budget-schedule "
        "shrink, and grad_norm in imp-test and with --imp-source training", choices=saliency.names(),
        brief="heuristic that scores the elements")
    imp_limit_test_batches: int | float = option(32,
        "scoring batches over all processes, or share of the training set", count_or_share,
        actions=(TRAIN, *_IMP_TEST, *_DYREALLOC), idle=_reads_no_batches)
    imp_source: Literal["dedicated", "training"] = option("dedicated",
        "scores from separate batches, or from gradients of training batches (no extra passes)", actions=_DYREALLOC,
        idle=_by_training)
    imp_warmup_batches: int | None = option(None, "train all elements on N batches before scoring, and undo it "
        "afterwards; by default what the heuristic needs", at_least(0), actions=_IMP_TEST,
        aliases=("--alpha-limit-zptrain-batches",), old_keys=("alpha_limit_zptrain_batches",))
    imp_warmup_lr: float = option(5e-4, "learning rate of this warm-up", RATE, actions=_IMP_TEST,
        idle=_without_warm_up)
    imp_halves: bool = option(True, "also score two halves of the batches and print how well they agree; only "
        "alpha_test, spectral, activation, weight_gradient and weight_grad_norm need more passes for it, as many again",
        actions=_IMP_TEST, idle=_ignored("batches"))
    imp_step_time: bool = option(False, "also measure the time of a training step, which `tools/realloc_lora_rank.py "
        "--budget-time` needs; this takes twelve steps", actions=_IMP_TEST, idle=_needed_by_budget)
    metric_red_tolerance: float = option(0.01,
        "relative loss of the metric that counts as unchanged, for heuristics that measure the metric", at_least(0),
        idle=_ignored("metric"))


@dataclass(frozen=True)
class ReallocationOptions:
    """Which elements are turned on, and when."""

    # fmt: off
    turn_on_percentile: float | None = option(None,
        "share of the elements to turn on, in (0, 1]; by default 0.25, unless another budget is given", share,
        brief="share of the elements to turn on (0.25)")
    budget_parameters: int | None = option(None, "trainable parameters of the elements to turn on, instead of a share: "
        "the best elements that fit", at_least(1),
        brief="parameters to turn on, instead of a share")
    budget_time: float | None = option(None, "share of the time of a training step with all elements on, in (0, 1], "
        "instead of a share of the elements: the best elements within it", share)
    dyrealloc_ags_mode: Mode | None = option(None,
        "whether LoRA and shortcuts share the budget; combined: one budget for all elements; separated: one for each "
        "kind; off: LoRA elements have it, shortcuts stay on; by default combined with shortcuts, off without")
    budget_schedule: Literal["fixed", "shrink"] = option("fixed", "when the budget holds; fixed: from the first "
        "step, with a reallocation every --realloc-N; shrink: begin with every element on and turn the weakest off for "
        "good, until the budget is reached", actions=_DYREALLOC)
    shrink_start: float = option(0.1, "share of the run after which the first elements are turned off", below_1,
        actions=_DYREALLOC, idle=idle_without("budget_schedule", "shrink"))
    shrink_end: float = option(0.5, "share of the run after which the budget is reached", share,
        actions=_DYREALLOC, idle=idle_without("budget_schedule", "shrink"))
    shrink_tolerance: float | None = option(None, "rise of the validation loss that ends --budget-schedule "
        "shrink, instead of a budget: when the rows show that it is above the lowest before by more than this, go back "
        "to the last elements with which it held", at_least(0), actions=_DYREALLOC)
    shrink_units: Literal["element", "rank"] = option("element", "what is turned off at a time: a whole element, or a "
        "single rank of one", actions=_DYREALLOC, idle=idle_without("budget_schedule", "shrink"))
    realloc_N: int | float = option(0.2,  # noqa: N815 the flag is --realloc-N
        "reallocate every N training batches, or share of an epoch (1 is a batch, 1.0 an epoch), and at the start of "
        "every epoch", count_or_share, actions=_DYREALLOC, idle=_by_training,
        brief="reallocate every N batches, or share of an epoch")
    realloc_warmup_epochs: int | None = option(None, "epochs in which the elements that were on least often are turned "
        "on; by default what the heuristic needs", at_least(0), actions=_DYREALLOC, idle=_by_training)
    # fmt: on

    @property
    def shrinks(self) -> bool:
        return self.budget_schedule == "shrink"

    @property
    def by_rank(self) -> bool:
        return self.shrinks and self.shrink_units == "rank"

    @property
    def budget(self) -> Budget:
        """What may be on: a number of parameters, a share of the step time (not measured yet), or of the elements."""
        if self.budget_parameters is not None:
            return Budget("parameters", self.budget_parameters)
        if self.budget_time is not None:
            return Budget("time", self.budget_time)
        if self.shrink_tolerance is not None:
            return Budget("share", _LEAST_SHARE)
        return Budget("share", DEFAULT_SHARE if self.turn_on_percentile is None else self.turn_on_percentile)

    @property
    def budget_flags(self) -> tuple[str, str]:
        """The flag of the budget and its value, as on a command line."""
        names = {"parameters": "budget_parameters", "time": "budget_time", "share": "turn_on_percentile"}
        budget = self.budget
        return flag_of(names[budget.unit]), f"{budget.amount}" if budget.unit == "parameters" else f"{budget.amount:g}"
