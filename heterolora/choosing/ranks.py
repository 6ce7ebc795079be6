"""Scores -> a rank for every element, within a budget of elements, ranks or parameters. Pure functions."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from heterolora.choosing.allocation import Mode, Scored, check_mode, element_counts, of_kind, ranked
from heterolora.choosing.step_time import StepTime, best_within
from heterolora.common.errors import UserError

Unit = Literal["share", "rank", "parameters", "time"]


@dataclass(frozen=True)
class Budget:
    """What may be on: a `share` in (0, 1] of the whole space, a total `rank`, trainable `parameters` of the elements,
    or a share of the `time` of a training step with all elements on, by `step_time`.
    """

    unit: Unit
    amount: float | Decimal | int
    step_time: StepTime | None = None

    def eased(self, share: float, whole: int) -> Budget:
        """A budget that also has `share` of what is beyond this one: 0 is this budget, and 1 is everything, `whole`."""
        if self.unit in ("share", "time"):
            amount = float(self.amount)
            return self if share == 0 else replace(self, amount=min(1.0, amount + (1 - amount) * share))
        return replace(self, amount=int(self.amount) + round((whole - int(self.amount)) * share))


@dataclass(frozen=True)
class Spending:
    """Budget and result of one ranking of LoRA, of shortcuts, or of both, as `title` says."""

    title: str
    unit: str  # of the three numbers
    size: int  # every element at its highest rank
    budget: int  # the part of it that could be spent
    spent: int


@dataclass(frozen=True)
class Assignment:
    """Key -> rank of every element that is on, and the cost."""

    ranks: Mapping[str, int]
    spending: tuple[Spending, ...]


Cost = Callable[[Scored, int], int]  # the cost of an element at a rank: 0 at rank 0, and it never falls with the rank
Bounds = Callable[[Scored], tuple[int, int]]  # the lowest and the highest rank of an element that is on

_COSTS: Mapping[str, Cost] = {
    "elements": lambda item, rank: int(rank > 0),
    "rank": lambda item, rank: rank,
    "total rank": lambda item, rank: rank,
    "parameters": lambda item, rank: rank * item.element.width,
}


@dataclass(frozen=True)
class TopK:
    """Turn on the best elements, all at one rank.

    Args:
        rank: the rank of every element that is on; None: the rank at which each was scored.
        to_the_last: spend what is left on lower ranks of the best elements that are off, until not one rank fits.
    """

    rank: int | None = None
    to_the_last: bool = False
    share_of = "elements"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"the rank is {self.rank}", "expected 1 or more")

    def bounds(self, item: Scored) -> tuple[int, int]:
        rank = self.rank or item.element.rank
        return rank, rank

    def spend(self, order: Sequence[Scored], amount: int, cost: Cost) -> dict[str, int]:
        """Ranks within `amount`, from `order`, best first: an element is on if the rest of the budget pays for it."""
        ranks = _fill(order, {}, amount, cost, self.bounds)
        if not self.to_the_last:
            return ranks
        left = amount - sum(cost(item, ranks[item.element.key]) for item in order)
        return _fill(order, ranks, left, cost, lambda item: (1, self.bounds(item)[1]))


@dataclass(frozen=True)
class Proportional:
    """Ranks in proportion to the scores.

    An element is off or has a rank from `min_rank` to `max_rank`. Ranks between these bounds are λ · score, with the λ
    that spends the budget. Fractions are rounded down; the largest fractions are rounded up while the budget allows it.

    Args:
        min_rank: at least 0; with 0 only the proportion decides which elements are off.
        max_rank: at least 1, and not below `min_rank`. A layer of less width has its width instead.
    """

    min_rank: int
    max_rank: int
    share_of = "rank"

    def __post_init__(self) -> None:
        if not 0 <= self.min_rank <= self.max_rank or self.max_rank < 1:
            found = f"ranks from {self.min_rank} to {self.max_rank}"
            raise UserError(found, "expected 0 <= lowest <= highest, and highest >= 1")

    def bounds(self, item: Scored) -> tuple[int, int]:
        return max(1, self.min_rank), self._highest(item)

    def _highest(self, item: Scored) -> int:
        return max(1, self.min_rank, min(self.max_rank, item.element.highest_rank))

    def spend(self, order: Sequence[Scored], amount: int, cost: Cost) -> dict[str, int]:
        """Ranks within `amount`, from `order`, best first.

        The best elements, as many as the budget pays for at their lowest rank, share it in proportion. The rest of the
        budget goes to the best-scored addition that fits, until none fits.
        """
        members = list(order)
        if self.min_rank > 0:
            base = _fill(order, {}, amount, cost, lambda item: (self.min_rank, self.min_rank))
            members = [item for item in order if base[item.element.key]]
        quotas = self._quotas(members, amount, cost)
        ranks = {key: math.floor(quota) for key, quota in quotas.items()}
        left = amount - sum(cost(item, ranks[item.element.key]) for item in members)
        for item in sorted(members, key=lambda item: ranks[item.element.key] - quotas[item.element.key]):
            key, price = item.element.key, cost(item, 1)
            if quotas[key] > ranks[key] and price <= left:
                ranks[key] += 1
                left -= price
        return _fill(order, ranks, left, cost, self.bounds)

    def _quotas(self, members: Sequence[Scored], amount: int, cost: Cost) -> dict[str, Fraction]:
        """min(max(λ · score, min_rank), highest rank) of each member, with the λ for which they cost `amount` (less if
        all are at their highest). The arithmetic is exact, so that no whole number is rounded down to the one below.
        """
        score = {item.element.key: Fraction(item.score) for item in members}
        if not any(score.values()):
            score = dict.fromkeys(score, Fraction(1))  # all scores are 0: equal shares
        price = {item.element.key: cost(item, 1) for item in members}
        highest = {item.element.key: Fraction(self._highest(item)) for item in members}

        def quotas(scale: Fraction) -> dict[str, Fraction]:
            low = Fraction(self.min_rank)
            return {key: min(max(scale * value, low), highest[key]) for key, value in score.items()}

        def total(scale: Fraction) -> Fraction:
            return sum((price[key] * quota for key, quota in quotas(scale).items()), Fraction(0))

        # Between two neighbours of this list no quota reaches a bound, so the total is linear in the scale.
        bounds = ((value, (self.min_rank, highest[key])) for key, value in score.items() if value)
        bends = sorted({Fraction(0), *(bound / value for value, both in bounds for bound in both)})
        above = bisect.bisect_right(bends, Fraction(amount), key=total)
        if above == len(bends):
            return quotas(bends[-1])
        low, high = bends[above - 1], bends[above]
        return quotas(low + (high - low) * (amount - total(low)) / (total(high) - total(low)))


@dataclass(frozen=True)
class Greedy:
    """Rank by rank: the ranks of all elements are in one list, ordered by the score of the rank (`Scored.by_rank`)."""

    share_of = "rank"

    def bounds(self, item: Scored) -> tuple[int, int]:
        if not item.by_rank:
            advice = "use the scores of spectral or activation, or another policy"
            raise UserError(
                f"the scores of {item.element.key} do not tell its ranks apart", f"expected by_rank; {advice}"
            )
        return 1, len(item.by_rank)

    def spend(self, order: Sequence[Scored], amount: int, cost: Cost) -> dict[str, int]:
        """Ranks within `amount`. A rank that does not fit is skipped, and so are the further ranks of its element."""
        ranks = dict.fromkeys((item.element.key for item in order), 0)
        additions = [(score, item) for item in order for score in item.by_rank]
        for _, item in sorted(additions, key=lambda addition: -addition[0]):  # stable: ties keep their random order
            if (price := cost(item, 1)) <= amount:
                ranks[item.element.key] += 1
                amount -= price
        return ranks


Policy = TopK | Proportional | Greedy


def _fill(order: Sequence[Scored], ranks: Mapping[str, int], left: int, cost: Cost, bounds: Bounds) -> dict[str, int]:
    """`ranks` plus the best-scored addition that `left` pays for, repeated until no addition fits.

    An addition is one more rank for an element that is on, or the lowest rank for an element that is off. An addition
    that does not fit now does not fit later, so one pass over `order` is enough.
    """
    filled = {item.element.key: ranks.get(item.element.key, 0) for item in order}
    for item in order:
        lowest, highest = bounds(item)
        while (rank := filled[item.element.key]) < highest:
            more = rank + 1 if rank else lowest
            price = cost(item, more) - cost(item, rank)
            if price > left:
                break
            filled[item.element.key] = more
            left -= price
    return filled


def assign(
    scored: Sequence[Scored],
    policy: Policy,
    budget: Budget,
    mode: Mode,
    generator: random.Random,
    among: Collection[str] | None = None,
) -> Assignment:
    """Spend `budget` on `scored`.

    Args:
        scored: the whole search space.
        policy: the ranks that an element may have, and how they follow from the scores.
        budget: a share is taken of each kind: LoRA rounded down, shortcuts rounded half up.
        mode: `off` spends on LoRA only and leaves shortcuts at the ranks at which they were scored; `separated` ranks
            each kind within its own part (a total is split in proportion to the whole space); `combined` ranks all.
        generator: breaks ties, see `allocation.tie_generator`.
        among: the keys of the elements that may be on; None: all. The budget is that of the whole space.

    Raises:
        UserError: a budget below the cheapest element or above the whole space, a share outside (0, 1], a NaN or
            infinite score, or a mode that has no elements to choose from.
    """
    order = ranked(scored, generator)  # of all elements, so that every mode breaks ties alike
    lora, shortcuts = of_kind(order, "lora"), of_kind(order, "shortcut")
    check_mode(mode, bool(lora), bool(shortcuts))
    if budget.unit == "time":
        if among is not None:
            raise ValueError("a budget of time is spent on the whole space")
        return _within_time(order, policy, budget, mode)
    unit = {"share": policy.share_of, "rank": "total rank", "parameters": "parameters"}[budget.unit]
    cost = _COSTS[unit]
    pools = [("LoRA", lora)] if mode == "off" else [("LoRA", lora), ("shortcuts", shortcuts)]
    sizes = [sum(cost(item, policy.bounds(item)[1]) for item in pool) for _, pool in pools]
    amounts = _split(budget, unit, sizes)
    if mode == "combined":
        pools, sizes, amounts = [("LoRA and shortcuts", order)], [sum(sizes)], [sum(amounts)]
    cheapest = [min((cost(item, policy.bounds(item)[0]) for item in pool), default=math.inf) for _, pool in pools]
    amounts = _enough(budget, unit, cheapest, amounts)

    ranks = {item.element.key: item.element.rank for item in shortcuts} if mode == "off" else {}
    spending = []
    for (title, pool), size, amount in zip(pools, sizes, amounts, strict=True):
        usable = [item for item in pool if among is None or item.element.key in among]
        given = policy.spend(usable, amount, cost)
        ranks |= given
        spent = sum(cost(item, given[item.element.key]) for item in usable)
        spending.append(Spending(title, unit, size, amount, spent))
    return Assignment({key: rank for key, rank in ranks.items() if rank > 0}, tuple(spending))


def choose(
    scored: Sequence[Scored],
    budget: Budget,
    mode: Mode,
    generator: random.Random,
    among: Collection[str] | None = None,
) -> frozenset[str]:
    """The keys of the elements that are on, each at the rank at which it was scored: the best ones, see `assign`.

    A share counts elements. Another budget is spent in order of score, and what does not fit is skipped.
    """
    return frozenset(assign(scored, TopK(), budget, mode, generator, among).ranks)


def check_time(mode: Mode) -> None:
    """Raise UserError if a time cannot be spent in this mode: the lowest block counts for both kinds together."""
    if mode == "separated":
        raise UserError("--budget-time cannot be divided between LoRA and shortcuts", "use mode 'combined' or 'off'")


def _within_time(order: Sequence[Scored], policy: Policy, budget: Budget, mode: Mode) -> Assignment:
    """The elements with the largest sum of scores within the time, see `best_within`, at the ranks of `policy`.

    `order`: the whole search space, ranked.
    """
    check_time(mode)
    if not isinstance(policy, TopK):
        raise UserError("--budget-time chooses elements, not ranks", "use --policy topk, or another budget")
    time, elements = budget.step_time, [item.element for item in order]
    if time is None:
        raise ValueError("a budget of time needs the constants of the model's step time")
    always = [element for element in elements if mode == "off" and element.kind == "shortcut"]
    pool = of_kind(order, "lora") if mode == "off" else list(order)
    everything = time.of(elements)
    seconds = float(budget.amount) * everything
    chosen = best_within(pool, always, time, seconds)
    if not chosen:
        least = min(time.of([*always, item.element]) for item in pool) / everything
        found = f"a budget of {budget.amount:g} of the step time pays for no element"
        raise UserError(found, f"expected at least {math.ceil(1000 * least) / 1000:g}")
    on = [*always, *(item.element for item in pool if item.element.key in chosen)]
    micros = (round(1e6 * each) for each in (everything, seconds, time.of(on)))
    ranks = {item.element.key: policy.bounds(item)[1] for item in pool if item.element.key in chosen}
    ranks |= {element.key: element.rank for element in always}
    title = "LoRA" if mode == "off" else "LoRA and shortcuts"
    return Assignment(ranks, (Spending(title, "µs of a step", *micros),))


def _split(budget: Budget, unit: str, sizes: Sequence[int]) -> list[int]:
    """The part of each kind in `budget`, from the size of each kind's whole space (LoRA first)."""
    if budget.unit == "share":
        counts = element_counts(budget.amount, sizes[0], sum(sizes[1:]))
        return [counts.lora, counts.shortcut][: len(sizes)]
    amount = int(budget.amount)
    if amount > sum(sizes):
        raise UserError(f"a budget of {amount} ({unit}) is above the whole space", f"expected at most {sum(sizes)}")
    lora = amount * sizes[0] // sum(sizes)
    return [lora, amount - lora][: len(sizes)]


def _enough(budget: Budget, unit: str, cheapest: Sequence[float], amounts: list[int]) -> list[int]:
    """`amounts`, if one of them pays for an element; a share that pays for none is raised to one element."""
    if any(amount >= price for amount, price in zip(amounts, cheapest, strict=True)):
        return amounts
    if budget.unit == "share":
        first = next(index for index, price in enumerate(cheapest) if price < math.inf)
        return [int(cheapest[index]) if index == first else amount for index, amount in enumerate(amounts)]
    raise UserError(
        f"a budget of {budget.amount} ({unit}) pays for no element",
        f"expected at least {min(cheapest)}" + (", or mode 'combined'" if len(amounts) > 1 else ""),
    )
