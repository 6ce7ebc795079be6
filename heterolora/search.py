"""The search during training, without a framework: when it decides, within which budget, by which scores.

A front, such as `heterolora.transformers`, calls `observe` before each optimizer step and `decide` after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from heterolora import saliency
from heterolora.choosing.allocation import Scored, tie_generator
from heterolora.choosing.history import Decision, History
from heterolora.choosing.ranks import Budget, choose
from heterolora.common.checks import check_known, number, whole_number
from heterolora.common.distributed import gather_lists
from heterolora.common.errors import NotFiniteError, UserError
from heterolora.elements.element import Element
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
        parameters: the budget: trainable parameters of the elements that are on at the end.
        schedule: `shrink` begins with every element on and turns the weakest off, for good. `fixed` has the budget from
            the first step, and chooses anew every `every` steps.
        heuristic: for `shrink`, one that is computed from the training gradients: `snip`, `grad_norm` or `fisher`.
        start: (shrink) the share of the run after which the first elements are turned off.
        end: (shrink) the share of the run after which the budget is reached.
        every: optimizer steps between two decisions.
        smoothing: (shrink) the weight of the earlier scores in their exponential mean.
        seed: of the draws between equal scores.
    """

    parameters: int
    schedule: Schedule = "shrink"
    heuristic: str = "snip"
    start: float = 0.1
    end: float = 0.5
    every: int = 1
    smoothing: float = 0.85
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for a value that cannot be used."""
        whole_number(1).check("Reallocate", "parameters", self.parameters)
        whole_number(1).check("Reallocate", "every", self.every)
        whole_number(0).check("Reallocate", "seed", self.seed)
        check_known("schedule", self.schedule, SCHEDULES)
        saliency.get(self.heuristic)
        for name in ("start", "end", "smoothing"):
            _SHARE.check("Reallocate", name, getattr(self, name))
        if self.start >= self.end:
            raise UserError(f"start is {self.start:g} and end is {self.end:g}", "give an end after the start")
        if self.smoothing == 1:
            raise UserError("smoothing is 1, which keeps the first scores for ever", "give a share below 1")

    def budget_at(self, step: int, steps: int, whole: int) -> int:
        """The parameters that may be on after `step` of `steps` optimizer steps, of `whole` in all elements.

        `shrink` follows the cubic curve of AdaLoRA (Zhang et al. 2023, arXiv:2303.10512, eq. 13), from b_0 to b_T::

            b(t) = b_T + (b_0 − b_T) (1 − (t − t_start) / (t_end − t_start))³
        """
        if self.schedule == "fixed":
            return self.parameters
        first, last = round(self.start * steps), max(round(self.end * steps), round(self.start * steps) + 1)
        left = 1 - min(max((step - first) / (last - first), 0.0), 1.0)
        return self.parameters + round((whole - self.parameters) * left**3)


@dataclass(frozen=True)
class Budgeted:
    """What a user of a front asks for; `plan` makes it definite once the search space and the run are known.

    Attributes:
        parameters: the budget in parameters; `share`: as a share of those of all elements. One of them is given.
        heuristic: None: `snip` for `shrink`, which needs no further passes, and `gain` for `fixed`.
        every: None: 1 for `shrink`, and a twentieth of the run for `fixed`.
        others: as in `Plan`.

    Raises:
        UserError: a value cannot be used.
    """

    parameters: int | None = None
    share: float | None = None
    schedule: Schedule = "shrink"
    heuristic: str | None = None
    start: float = 0.1
    end: float = 0.5
    every: int | None = None
    smoothing: float = 0.85
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.parameters is None) == (self.share is None):
            given = "no budget is given" if self.parameters is None else "parameters and share are both given"
            raise UserError(given, "give one of them")
        if self.share is not None and not 0 < self.share <= 1:
            raise UserError(f"share is {self.share}", "expected a share in (0, 1]")
        self._plan(1 if self.parameters is None else self.parameters, 1)

    def plan(self, space: SearchSpace, steps: int) -> Plan:
        whole = sum(element.parameters for element in space.elements)
        parameters = self.parameters if self.share is None else max(1, int(self.share * whole))
        return self._plan(parameters, steps)

    def _plan(self, parameters: Any, steps: int) -> Plan:
        shrinks = self.schedule == "shrink"
        heuristic = self.heuristic or ("snip" if shrinks else "gain")
        every = self.every if self.every is not None else 1 if shrinks else max(1, steps // 20)
        return Plan(parameters, self.schedule, heuristic, self.start, self.end, every, self.smoothing, self.seed)


class Search:
    """Which elements of `space` are on in a run of `steps` optimizer steps.

    Every process holds one, with the same gradients, and all decide alike.

    Raises:
        UserError: the budget pays for no element, or `shrink` is given a heuristic that needs batches of its own.
    """

    def __init__(self, space: SearchSpace, plan: Plan, steps: int) -> None:
        self.space, self.plan, self.steps = space, plan, steps
        self.whole = sum(element.parameters for element in space.elements)
        self.history = History(space.elements)
        self._scores: dict[str, float] = {}  # smoothed, of the elements that are on
        self._measure = _gradient_heuristic(plan.heuristic) if plan.schedule == "shrink" else None
        cheapest = min(element.parameters for element in space.elements)
        if plan.parameters < cheapest:
            found = f"a budget of {plan.parameters} parameters pays for no element"
            raise UserError(found, f"expected at least {cheapest}")
        if plan.parameters > self.whole:
            found = f"a budget of {plan.parameters} parameters is above the {self.whole} of all elements"
            raise UserError(found, f"expected at most {self.whole}")

    # ---- what it sees

    @torch.no_grad()
    def observe(self) -> None:
        """Take the gradients of a step into the smoothed scores: after all processes have them, before the step."""
        if self._measure is None:
            return
        on = [each for each in self.space.on() if each.A.grad is not None and each.B.grad is not None]
        weights = [weight for each in on for weight in (each.A, each.B)]
        if not weights:
            return
        gradients = [self._measure.of_batch(weight.grad) for weight in weights if weight.grad is not None]
        for each, value in zip(on, self._measure.scores(weights, gradients), strict=True):
            key, kept = each.element.key, self.plan.smoothing
            self._scores[key] = kept * self._scores[key] + (1 - kept) * value if key in self._scores else value

    # ---- what it decides

    def due(self, step: int) -> bool:
        """Whether there is a decision after `step` optimizer steps; `fixed` begins with one, before the first."""
        if self.plan.schedule == "fixed":
            return step < self.steps and step % self.plan.every == 0
        first, last = round(self.plan.start * self.steps), round(self.plan.end * self.steps)
        return first < step <= max(last, first + 1) and (step % self.plan.every == 0 or step >= last)

    def decide(self, step: int, score_all: ScoreAll | None = None, epoch: int = 0) -> frozenset[str]:
        """Turn elements on and off after `step` optimizer steps, and return the keys of those that are on.

        `score_all` gives the scores of `fixed`. Raises UserError if a score is not finite, or processes disagree.
        """
        elements = self.space.elements
        if self.plan.schedule == "fixed":
            scores = dict((score_all or dict)())
            candidates: Sequence[Element] = elements
        else:
            scores = self._scores
            candidates = [each.element for each in self.space.on()]
        budget = Budget("parameters", self.plan.budget_at(step, self.steps, self.whole))
        cost = sum(element.parameters for element in candidates)
        if self.plan.schedule == "shrink" and budget.amount >= cost:
            return frozenset(element.key for element in candidates)
        ties = tie_generator(self.plan.seed, len(self.history.decisions))
        try:
            chosen = choose([Scored(each, scores.get(each.key, 0.0)) for each in candidates], budget, "off", ties)
        except NotFiniteError as reason:
            raise NotFiniteError(f"after step {step}, {reason.found}", reason.expected) from None
        _check_agreement(chosen, step)
        self.space.switch(chosen)
        values = tuple(float(scores.get(element.key, 0.0)) for element in elements)
        on = tuple(element.key in chosen for element in elements)
        self.history.decisions.append(Decision(epoch, step, values, on))
        return chosen

    # ---- in words

    def figures(self) -> dict[str, float]:
        """Name -> value, for the logs of a trainer."""
        return {
            "realloc/parameters_on": float(self.parameters_on),
            "realloc/lora_on": float(len(self.space.on())),
            "realloc/churn": (0.0, *self.history.churn())[-1],
        }

    def at_the_start(self) -> str:
        plan = self.plan
        return (
            f"heterolora: {len(self.space)} places with {self.whole:,} parameters, schedule {plan.schedule} with a "
            f"budget of {plan.parameters:,} parameters, by {plan.heuristic}"
        )

    def at_the_end(self) -> str:
        on = len(self.space.on())
        return f"heterolora: {on} of {len(self.space)} places are on, with {self.parameters_on:,} parameters"

    # ---- state

    @property
    def parameters_on(self) -> int:
        return sum(each.element.parameters for each in self.space.on())

    def state_dict(self) -> dict[str, Any]:
        """Plain values, which JSON keeps exactly."""
        return {
            "on": sorted(each.element.key for each in self.space.on()),
            "scores": dict(self._scores),
            "places": [place.key for place in self.history.places],
            "decisions": [[d.epoch, d.step, list(d.scores), list(d.on)] for d in self.history.decisions],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`. Raises UserError if it belongs to another search space."""
        if state["places"] != [place.key for place in self.history.places]:
            raise UserError("the checkpoint has another search space", "resume with the configuration of its run")
        self._scores = dict(state["scores"])
        self.history.decisions = [Decision(e, s, tuple(scores), tuple(on)) for e, s, scores, on in state["decisions"]]
        self.space.switch(frozenset(state["on"]))


def _gradient_heuristic(name: str) -> GradientHeuristic:
    scorer = saliency.get(name).score
    if not isinstance(scorer, GradientHeuristic):
        found = f"'{name}' is not computed from the training gradients, which schedule 'shrink' uses"
        raise UserError(found, "give snip, grad_norm or fisher, or schedule='fixed'")
    return scorer


def _check_agreement(chosen: frozenset[str], step: int) -> None:
    """Raises UserError on every process unless all of them decided the same."""
    everywhere = gather_lists([sorted(chosen)])
    if any(other != everywhere[0] for other in everywhere):
        raise UserError(
            f"the processes disagree about what is on after step {step}",
            "run all of them on machines of one kind, with the same versions",
        )
