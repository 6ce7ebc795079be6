"""The search during training, without a framework: when it decides, within which budget, by which scores.

A front, such as `heterolora.transformers`, calls `observe` before each optimizer step and `decide` between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from heterolora import saliency
from heterolora.choosing.allocation import Mode, Scored, tie_generator
from heterolora.choosing.history import Decision, History
from heterolora.choosing.ranks import Budget, choose
from heterolora.common.checks import check_known, number, whole_number
from heterolora.common.distributed import check_agreement
from heterolora.common.errors import DivergenceError, NotFiniteError, UserError
from heterolora.elements.element import KINDS, Element
from heterolora.elements.rank_units import UNITS, Units
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.gradients import GradientHeuristic

Schedule = Literal["shrink", "fixed"]
SCHEDULES: tuple[Schedule, ...] = ("shrink", "fixed")

#: Element key -> score. The front computes it where scores need batches of their own.
ScoreAll = Callable[[], Mapping[str, float]]

_SHARE = number(lambda value: 0 <= value <= 1, "a share in [0, 1]")


@dataclass(frozen=True)
class Plan:
    """What a search does in a run.

    Attributes:
        budget: of the elements that are on at the end.
        schedule: `shrink` begins with every element on and turns the weakest off, for good. `fixed` has the budget from
            the first step, and chooses anew.
        heuristic: for `shrink`, one that is computed from the training gradients: `snip`, `grad_norm` or `fisher`.
        start: (shrink) the share of the run after which the first elements are turned off.
        end: (shrink) the share of the run after which the budget is reached.
        every: optimizer steps between two decisions.
        smoothing: (shrink) the weight of the earlier scores in their exponential mean.
        seed: of the draws between equal scores.
        mode: which kinds of elements are chosen among, see `heterolora.choosing.ranks.assign`.
        units: (shrink) what is turned off at a time. With `rank`, the search space is that of `rank_units`.
    """

    budget: Budget
    schedule: Schedule = "shrink"
    heuristic: str = "snip"
    start: float = 0.1
    end: float = 0.5
    every: int = 1
    smoothing: float = 0.85
    seed: int = 0
    mode: Mode = "off"
    units: Units = "element"

    def __post_init__(self) -> None:
        """Raise UserError for a value that cannot be used."""
        if self.budget.unit == "parameters":
            whole_number(1).check("Reallocate", "parameters", self.budget.amount)
        whole_number(1).check("Reallocate", "every", self.every)
        whole_number(0).check("Reallocate", "seed", self.seed)
        check_known("schedule", self.schedule, SCHEDULES)
        check_known("units", self.units, UNITS)
        if self.units == "rank" and not self.shrinks:
            raise UserError(
                "units is 'rank' and schedule is 'fixed'", "give schedule='shrink': a rank cannot come back"
            )
        saliency.get(self.heuristic)
        for name in ("start", "end", "smoothing"):
            _SHARE.check("Reallocate", name, getattr(self, name))
        if self.start >= self.end:
            raise UserError(f"start is {self.start:g} and end is {self.end:g}", "give an end after the start")
        if self.smoothing == 1:
            raise UserError("smoothing is 1, which keeps the first scores for ever", "give a share below 1")

    @property
    def shrinks(self) -> bool:
        return self.schedule == "shrink"

    def span(self, steps: int) -> tuple[int, int]:
        """The steps, of `steps`, after which the budget begins to fall and is reached. One step at least is left."""
        first = round(self.start * steps)
        last = min(max(round(self.end * steps), first + 1), max(steps - 1, 1))
        return min(first, last - 1), last

    def budget_at(self, step: int, steps: int, whole: int) -> Budget:
        """What may be on after `step` of `steps` optimizer steps; `whole`: the parameters of all elements.

        `shrink` follows the cubic curve of AdaLoRA (Zhang et al. 2023, arXiv:2303.10512, eq. 13), from b_0 to b_T::

            b(t) = b_T + (b_0 − b_T) (1 − (t − t_start) / (t_end − t_start))³
        """
        if not self.shrinks:
            return self.budget
        first, last = self.span(steps)
        left = 1 - min(max((step - first) / (last - first), 0.0), 1.0)
        return self.budget.eased(left**3, whole)


class Stop(Protocol):
    """What may end a search that shrinks before its curve does. From then on, its choice is `held`.

    Attributes:
        held: the keys of the elements that the search goes back to.
    """

    held: tuple[str, ...]
    stopped: bool


class Search:
    """Which elements of `space` are on in a run of `steps` optimizer steps.

    Every process holds one, with the same gradients, and all decide alike.

    Raises:
        UserError: the budget does not fit the elements, or `shrink` is given a heuristic that needs batches of its own.
    """

    def __init__(self, space: SearchSpace, plan: Plan, steps: int, stop: Stop | None = None) -> None:
        self.space, self.plan, self.steps, self.stop = space, plan, steps, stop
        self.whole = sum(element.parameters for element in _pool(plan, space.elements))
        self.history = History(space.elements)
        self.scores: dict[str, float] = {}  # (shrink) the smoothed scores of the elements
        self._measure = gradient_heuristic(plan.heuristic) if plan.shrinks else None
        check_budget(plan, space.elements)

    # ---- what it sees

    @torch.no_grad()
    def observe(self, step: int, loss_is_scaled: bool = False) -> None:
        """Take the gradients of a step into the smoothed scores: after all processes have them, before the step.

        Args:
            step: the number of optimizer steps before this one.
            loss_is_scaled: by a gradient scaler. It skips a step whose gradients are not finite, so this does too.
        """
        if self._measure is None or self._held is not None or step >= self.plan.span(self.steps)[1]:
            return
        on = [each for each in self.space.on() if each.A.grad is not None and each.B.grad is not None]
        weights = [weight for each in on for weight in (each.A, each.B)]
        if not weights:
            return
        gradients = [self._measure.of_batch(weight.grad) for weight in weights if weight.grad is not None]
        values = self._measure.scores(weights, gradients)
        if loss_is_scaled and not all(map(math.isfinite, values)):
            return
        for each, value in zip(on, values, strict=True):
            key, kept = each.element.key, self.plan.smoothing
            self.scores[key] = kept * self.scores[key] + (1 - kept) * value if key in self.scores else value

    # ---- what it decides

    def due(self, step: int) -> bool:
        """Whether there is a decision after `step` optimizer steps. The first one is before the first step."""
        if not self.plan.shrinks:
            return step < self.steps and step % self.plan.every == 0
        if self._held is not None:
            return self.on != self._held
        first, last = self.plan.span(self.steps)
        return step == 0 or (first < step <= last and (step % self.plan.every == 0 or step == last))

    def settled(self, step: int) -> bool:
        """Whether what is on after `step` optimizer steps is within the budget of the end."""
        if self._held is not None:
            return self.on == self._held
        return not self.plan.shrinks or self.ends(step)

    def decide(self, step: int, score_all: ScoreAll | None = None, when: tuple[int, int] | None = None) -> None:
        """Turn elements on and off after `step` optimizer steps. `shrink` turns elements off only.

        Args:
            score_all: gives the scores of `fixed`.
            when: epoch and batch for the history; by default epoch 0, and the step in place of a batch.

        Raises:
            UserError: the processes disagree, or the budget pays for no element.
            DivergenceError: a score is not finite after the first step.
        """
        try:
            scored = self._scored(score_all)
            chosen = self._chosen(step, scored)
        except UserError as reason:
            where = f"at step {step}" + ("" if when is None else f" (epoch {when[0]})")
            diverged = isinstance(reason, NotFiniteError) and step > 0
            raise (DivergenceError if diverged else UserError)(f"{where}, {reason.found}", reason.expected) from None
        decisions, on = self.history.decisions, {element.key: element.key in chosen for element in self.space.elements}
        # Different decisions would average the gradients of different elements without an error.
        check_agreement(on, f" at reallocation {len(decisions)}")
        if self.plan.shrinks and decisions and decisions[-1].on == tuple(on.values()):
            return
        self.space.switch(chosen)
        scores = tuple(item.score for item in scored)
        decisions.append(Decision(*(when or (0, step)), scores, tuple(on.values())))

    def _scored(self, score_all: ScoreAll | None) -> list[Scored]:
        scores = self.scores if self.plan.shrinks else (score_all or dict)()
        return [Scored(element, float(scores.get(element.key, 0.0))) for element in self.space.elements]

    def _chosen(self, step: int, scored: Sequence[Scored]) -> frozenset[str]:
        if self.plan.shrinks and step == 0:
            return frozenset(item.element.key for item in scored)
        if self._held is not None:
            return self._held
        among = self.on if self.plan.shrinks else None
        budget = self.plan.budget_at(step, self.steps, self.whole)
        ties = tie_generator(self.plan.seed, len(self.history.decisions))
        return choose(scored, budget, self.plan.mode, ties, among)

    # ---- in words

    def figures(self) -> dict[str, float]:
        """Name -> value, for the logs of a trainer."""
        return {
            "realloc/parameters_on": float(self.parameters_on),
            "realloc/churn": (0.0, *self.history.churn())[-1],
            **{f"realloc/{kind}_on": float(len(self.space.on(kind))) for kind in KINDS if self.space.of_kind(kind)},
        }

    def at_the_start(self) -> str:
        plan, size = self.plan, f"{len(self.space)} {self._things} with {self.whole:,} parameters"
        return (
            f"heterolora: {size}, schedule {plan.schedule} with a budget of {plan.budget.amount:,} parameters, "
            f"by {plan.heuristic}"
        )

    def at_the_end(self) -> str:
        on = len(self.space.on())
        return f"heterolora: {on} of {len(self.space)} {self._things} are on, with {self.parameters_on:,} parameters"

    @property
    def _things(self) -> str:
        return "ranks" if self.plan.units == "rank" else "places"

    # ---- state

    @property
    def on(self) -> set[str]:
        """The keys of the elements that are on."""
        return {each.element.key for each in self.space.on()}

    @property
    def _held(self) -> frozenset[str] | None:
        """What the search goes back to. None until it is stopped."""
        return frozenset(self.stop.held) if self.stop is not None and self.stop.stopped else None

    def ends(self, step: int) -> bool:
        """Whether `shrink` has turned off all that it will after `step` optimizer steps."""
        return step > self.plan.span(self.steps)[1]

    @property
    def parameters_on(self) -> int:
        return sum(each.element.parameters for each in self.space.on())

    def state_dict(self) -> dict[str, Any]:
        """Plain values, which JSON keeps exactly."""
        return {
            "on": sorted(self.on),
            "scores": dict(self.scores),
            "places": [place.key for place in self.history.places],
            "decisions": [[d.epoch, d.step, list(d.scores), list(d.on)] for d in self.history.decisions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises UserError if it belongs to another search space."""
        if state["places"] != [place.key for place in self.history.places]:
            raise UserError("the checkpoint has another search space", "resume with the configuration of its run")
        self.scores = dict(state["scores"])
        self.history.decisions = [Decision(e, s, tuple(scores), tuple(on)) for e, s, scores, on in state["decisions"]]
        self.space.switch(frozenset(state["on"]))


def check_budget(plan: Plan, elements: Sequence[Element]) -> None:
    """Raise UserError if the budget does not fit the elements.

    An element that is off stays off in `shrink`. So the budget must pay for any element that may be the last one on.
    """
    if plan.shrinks and plan.budget.unit == "time":
        found = "a budget of time cannot be used with schedule 'shrink': it is not spent in order of score"
        raise UserError(found, "give a share or a number of parameters")
    pool = _pool(plan, elements)
    if plan.budget.unit != "parameters" or not pool:
        return
    costs, amount = [element.parameters for element in pool], plan.budget.amount
    if amount < min(costs):
        found = f"a budget of {amount} parameters pays for no element"
        raise UserError(found, f"expected at least {max(costs) if plan.shrinks else min(costs)}")
    if plan.shrinks and amount < max(costs):
        found = (
            f"a budget of {amount} parameters does not pay for every single element, and any of them may be the last"
        )
        raise UserError(found, f"expected at least {max(costs)} with schedule 'shrink'")
    if amount > sum(costs):
        found = f"a budget of {amount} parameters is above the {sum(costs)} of all elements"
        raise UserError(found, f"expected at most {sum(costs)}")


def _pool(plan: Plan, elements: Sequence[Element]) -> list[Element]:
    """The elements that the plan chooses among."""
    return [element for element in elements if plan.mode != "off" or element.kind == "lora"]


def gradient_heuristic(name: str) -> GradientHeuristic:
    """The formula of a heuristic that training gradients are enough for. Raises UserError for another heuristic."""
    scorer = saliency.get(name).score
    if not isinstance(scorer, GradientHeuristic):
        found = f"'{name}' is not computed from the training gradients, which schedule 'shrink' uses"
        raise UserError(found, "give snip, grad_norm or fisher, or schedule='fixed'")
    return scorer
