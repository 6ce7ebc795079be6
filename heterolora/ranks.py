"""Scores → a rank for every element, within a budget of elements, ranks or parameters. Pure, like `allocation`."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Literal

from heterolora.allocation import Candidate, Mode, check_mode, of_kind, ranked, share
from heterolora.errors import UserError

Unit = Literal["share", "rank", "parameters"]


@dataclass(frozen=True)
class Site(Candidate):
    """A candidate with its size.

    Attributes:
        in_features: width of its input.
        out_features: width of its output.
        rank: the rank at which it was scored, at least 1.
    """

    in_features: int
    out_features: int
    rank: int


@dataclass(frozen=True)
class Limit:
    """What may be spent.

    Attributes:
        unit: `share` of the whole space, total `rank`, or trainable `parameters` of the elements.
        amount: a number in (0, 1] for `share`, a whole number otherwise.
    """

    unit: Unit
    amount: float | Decimal | int


@dataclass(frozen=True)
class Spending:
    """Budget and result of one ranking.

    Attributes:
        title: what was ranked: `LoRA`, `shortcuts`, or both.
        unit: what the three numbers count.
        whole: the whole space: every element at its highest rank.
        budget: the part of it that could be spent.
        spent: what was spent, never more than `budget`.
    """

    title: str
    unit: str
    whole: int
    budget: int
    spent: int


@dataclass(frozen=True)
class Assignment:
    """Key → rank of every element that is on, and what that cost."""

    ranks: Mapping[str, int]
    spending: tuple[Spending, ...]


Cost = Callable[[Site, int], int]  # what a site costs at a rank; 0 at rank 0, and no less at a higher rank


@dataclass(frozen=True)
class TopK:
    """The best elements on, each at one rank.

    Args:
        rank: the rank of every element that is on; None: the one at which it was scored.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise UserError(f"the rank is {self.rank}", "expected 1 or more")

    def lowest(self, site: Site) -> int:
        """The lowest rank at which the element can be on."""
        return self.rank or site.rank

    highest = lowest

    def shared(self) -> tuple[str, Cost]:
        """What a share is a share of: the elements."""
        return "elements", lambda site, rank: int(rank > 0)

    def spend(self, order: Sequence[Site], budget: int, cost: Cost) -> dict[str, int]:
        """Ranks within `budget`, from `order`, best first: each element is on that what is left can pay for."""
        return _fill(order, {}, budget, cost, self.lowest, self.highest)


@dataclass(frozen=True)
class Proportional:
    """Ranks in proportion to the scores.

    An element is off or has a rank from `min_rank` to `max_rank`; those in between follow λ · score, with the λ that
    spends the budget. Fractions are dropped, the largest of them rounded up for as long as that can be paid.

    Args:
        min_rank: at least 0, where 0 lets the proportion alone decide who is off.
        max_rank: at least 1, and no less than `min_rank`.
    """

    min_rank: int
    max_rank: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_rank <= self.max_rank or self.max_rank < 1:
            raise UserError(
                f"ranks from {self.min_rank} to {self.max_rank}", "expected 0 <= lowest <= highest, and highest >= 1"
            )

    def lowest(self, site: Site) -> int:
        """The lowest rank at which the element can be on."""
        return max(1, self.min_rank)

    def highest(self, site: Site) -> int:
        return self.max_rank

    def shared(self) -> tuple[str, Cost]:
        """What a share is a share of: the total rank."""
        return "rank", lambda site, rank: rank

    def spend(self, order: Sequence[Site], budget: int, cost: Cost) -> dict[str, int]:
        """Ranks within `budget`, from `order`, best first.

        The best elements whose lowest rank can be paid for take part in the proportion. What is left at the end goes
        to the best-scored addition that still fits, until none does.
        """
        base = dict.fromkeys((site.key for site in order), 0)
        if self.min_rank > 0:
            base |= _fill(order, {}, budget, cost, self.lowest, self.lowest)
        members = [site for site in order if base[site.key] == self.min_rank]
        quotas = self._quotas(members, budget, cost)
        ranks = {key: math.floor(quota) for key, quota in quotas.items()}
        left = budget - sum(cost(site, ranks[site.key]) for site in members)
        by_fraction = sorted(members, key=lambda site: ranks[site.key] - quotas[site.key])
        for site in by_fraction:
            price = cost(site, 1)
            if quotas[site.key] > ranks[site.key] and price <= left:
                ranks[site.key] += 1
                left -= price
        return _fill(order, ranks, left, cost, self.lowest, self.highest)

    def _quotas(self, members: Sequence[Site], budget: int, cost: Cost) -> dict[str, Fraction]:
        """min(max(λ · score, min_rank), max_rank) of each member, with λ such that they cost `budget` (less, if all of
        them are at their highest). Fractions of integers: what is a whole number must not be floored to the one below.
        """
        score = {site.key: Fraction(site.score) for site in members}
        if not any(score.values()):
            score = dict.fromkeys(score, Fraction(1))  # all are 0: no proportion but an equal one
        price = {site.key: cost(site, 1) for site in members}

        def quotas(scale: Fraction) -> dict[str, Fraction]:
            return {
                key: min(max(scale * value, Fraction(self.min_rank)), Fraction(self.max_rank))
                for key, value in score.items()
            }

        def total(scale: Fraction) -> Fraction:
            return sum((price[key] * quota for key, quota in quotas(scale).items()), Fraction(0))

        # Between two of these scales no quota reaches a bound, so that the total is linear there.
        bends = sorted(
            {Fraction(0), *(bound / s for s in score.values() if s for bound in (self.min_rank, self.max_rank))}
        )
        above = bisect.bisect_right(bends, budget, key=total)
        if above == len(bends):
            return quotas(bends[-1])
        low, high = bends[above - 1], bends[above]
        return quotas(low + (high - low) * (budget - total(low)) / (total(high) - total(low)))


Policy = TopK | Proportional


def _fill(
    order: Sequence[Site],
    ranks: Mapping[str, int],
    left: int,
    cost: Cost,
    lowest: Callable[[Site], int],
    highest: Callable[[Site], int],
) -> dict[str, int]:
    """`ranks` with the best-scored addition that `left` can pay for, again and again, until there is none.

    An addition is one rank more for an element that is on, or the lowest rank for one that is off. What can't be paid
    for now can't be later, so that one pass over `order` finds all of them.
    """
    filled = {site.key: ranks.get(site.key, 0) for site in order}
    for site in order:
        while (rank := filled[site.key]) < highest(site):
            more = rank + 1 if rank else lowest(site)
            price = cost(site, more) - cost(site, rank)
            if price > left:
                break
            filled[site.key] = more
            left -= price
    return filled


def assign(sites: Sequence[Site], policy: Policy, limit: Limit, mode: Mode, generator: random.Random) -> Assignment:
    """Spend `limit` on `sites`.

    Args:
        sites: the whole search space.
        policy: what ranks an element may have, and how they follow from the scores.
        limit: the budget. A share is taken of each kind as in design §3, LoRA rounded down and shortcuts half up.
        mode: `off` spends on LoRA alone and leaves shortcuts at the ranks they were scored with; `separated` ranks
            each kind within its own part (a total is split as the whole space is); `combined` ranks all together.
        generator: draws among equal scores, see `allocation.tie_generator`.

    Raises:
        UserError: a budget below the cheapest element or above the whole space, a share outside (0, 1], a NaN or
            infinite score, a mode that has nothing to choose from.
    """
    lora, shortcuts = of_kind(sites, "lora"), of_kind(sites, "shortcut")
    check_mode(mode, bool(lora), bool(shortcuts))
    unit, cost = _unit(policy, limit)
    pools = [("LoRA", lora)] if mode == "off" else [("LoRA", lora), ("shortcuts", shortcuts)]
    whole = [sum(cost(site, policy.highest(site)) for site in pool) for _, pool in pools]
    budgets = _split(limit, unit, whole)
    if mode == "combined":
        pools, whole, budgets = [("LoRA and shortcuts", list(sites))], [sum(whole)], [sum(budgets)]
    budgets = _enough(limit, unit, [[cost(site, policy.lowest(site)) for site in pool] for _, pool in pools], budgets)

    ranks = {site.key: site.rank for site in shortcuts} if mode == "off" else {}
    spending = []
    for (title, pool), size, budget in zip(pools, whole, budgets, strict=True):
        given = policy.spend(ranked(pool, generator), budget, cost)
        ranks |= given
        spending.append(Spending(title, unit, size, budget, sum(cost(site, given[site.key]) for site in pool)))
    return Assignment({key: rank for key, rank in ranks.items() if rank > 0}, tuple(spending))


def _unit(policy: Policy, limit: Limit) -> tuple[str, Cost]:
    """What the budget counts, and what a site costs in it."""
    if limit.unit == "share":
        return policy.shared()
    if limit.unit == "rank":
        return "total rank", lambda site, rank: rank
    return "parameters", lambda site, rank: rank * (site.in_features + site.out_features)


def _split(limit: Limit, unit: str, whole: Sequence[int]) -> list[int]:
    """The budget of each kind, given the size of each kind's whole space (LoRA first)."""
    if limit.unit == "share":
        budget = share(limit.amount, whole[0], sum(whole[1:]))
        return [budget.lora, budget.shortcut][: len(whole)]
    amount = int(limit.amount)
    if amount > sum(whole):
        raise UserError(f"a budget of {amount} ({unit}) is above the whole space", f"expected at most {sum(whole)}")
    lora = amount * whole[0] // sum(whole)
    return [lora, amount - lora][: len(whole)]


def _enough(limit: Limit, unit: str, prices: Sequence[Sequence[int]], budgets: Sequence[int]) -> list[int]:
    """`budgets`, if one of them buys an element; a share that buys none is raised to one element."""
    cheapest = [min(pool, default=math.inf) for pool in prices]
    if any(budget >= price for budget, price in zip(budgets, cheapest, strict=True)):
        return list(budgets)
    if limit.unit == "share":
        first = next(index for index, price in enumerate(cheapest) if price < math.inf)
        return [int(cheapest[index]) if index == first else budget for index, budget in enumerate(budgets)]
    raise UserError(
        f"a budget of {limit.amount} ({unit}) buys no element",
        f"expected at least {min(cheapest)}" + (", or mode 'combined'" if len(budgets) > 1 else ""),
    )
