"""Scores → which elements are on. Pure: it knows nothing of networks or training.

The budget is a share p of the candidates: ⌊p · n₁⌋ of the n₁ LoRA elements and p · n₂ of the n₂ shortcuts, rounded half
up, but one element at least. The highest scores win; equal scores are drawn.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Literal, TypeVar

from heterolora.config import Kind
from heterolora.element import Place
from heterolora.errors import UserError

Mode = Literal["off", "separated", "combined"]
MODES: tuple[Mode, ...] = ("off", "separated", "combined")


@dataclass(frozen=True)
class Candidate(Place):
    """One element and its score.

    Attributes:
        kind: `lora` or `shortcut`.
        score: higher is more important.
    """

    kind: Kind
    score: float


AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


@dataclass(frozen=True)
class Budget:
    """How much of each kind may be on, in the unit that `share` was given."""

    lora: int
    shortcut: int


def default_mode(has_shortcuts: bool) -> Mode:
    return "combined" if has_shortcuts else "off"


def share(percentile: float | Decimal, lora: int, shortcut: int) -> Budget:
    """⌊p · lora⌋ and p · shortcut rounded half up, in exact decimals: 0.29 of 100 is 29, which floats make 28.99….

    Where both come out as 0, one element may be on all the same: a LoRA one if there is any.

    Args:
        percentile: p in (0, 1]; a float means the decimal that it is written as.
        lora: how much LoRA there is: elements, or another unit.
        shortcut: how much there is of shortcuts, in the same unit.

    Raises:
        UserError: p is outside (0, 1].
    """
    p = Decimal(str(percentile))
    if p.is_nan() or not 0 < p <= 1:
        raise UserError(f"the share of elements to turn on is {percentile}", "expected a number above 0 and at most 1")
    some_lora = int((p * lora).to_integral_value(ROUND_FLOOR))
    some_shortcuts = int((p * shortcut).to_integral_value(ROUND_HALF_UP))
    if some_lora + some_shortcuts > 0:
        return Budget(some_lora, some_shortcuts)
    return Budget(1, 0) if lora else Budget(0, min(1, shortcut))


def tie_generator(seed: int, draw: int) -> random.Random:
    """The generator that breaks ties in one allocation.

    It depends on `--seed` and the number of the allocation alone. So it is the same on every process, disturbs no other
    random state, and a checkpoint needs to hold nothing of it but that number.
    """
    return random.Random(f"allocation {draw} of a run with seed {seed}")


def ranked(candidates: Sequence[AnyCandidate], generator: random.Random) -> list[AnyCandidate]:
    """`candidates` by score, the highest first, whatever their order was; equal scores in an order drawn uniformly.

    Raises:
        UserError: a score is NaN or infinite.
    """
    for candidate in candidates:
        if not math.isfinite(candidate.score):
            raise UserError(
                f"the score of {candidate.key} is {candidate.score}",
                "expected a finite one; look at the loss, and at the precision",
            )
    drawn = sorted(candidates, key=lambda candidate: (candidate.layer, candidate.name))
    generator.shuffle(drawn)
    return sorted(drawn, key=lambda candidate: -candidate.score)  # stable: equal scores stay as drawn


def allocate(
    candidates: Sequence[Candidate], percentile: float | Decimal, mode: Mode, generator: random.Random
) -> frozenset[str]:
    """The keys of the elements that are on.

    Args:
        candidates: every element of the search space.
        percentile: share p in (0, 1] of the elements to turn on.
        mode: `off` ranks LoRA alone and leaves shortcuts as configured, that is on; `separated` ranks each kind within
            its own budget; `combined` ranks all of them within the sum of both budgets.
        generator: draws among equal scores, see `tie_generator`.

    Raises:
        UserError: a score is NaN or infinite, p is outside (0, 1], or there is nothing to choose from.
    """
    order = ranked(candidates, generator)
    lora, shortcuts = of_kind(order, "lora"), of_kind(order, "shortcut")
    check_mode(mode, bool(lora), bool(shortcuts))
    if mode == "off":
        chosen = [*lora[: share(percentile, len(lora), 0).lora], *shortcuts]
    else:
        budget = share(percentile, len(lora), len(shortcuts))
        if mode == "separated":
            chosen = [*lora[: budget.lora], *shortcuts[: budget.shortcut]]
        else:
            chosen = order[: budget.lora + budget.shortcut]
    return frozenset(candidate.key for candidate in chosen)


def by_least_often_on(candidates: Sequence[Candidate], times_on: Mapping[str, int]) -> list[Candidate]:
    """`candidates` scored by how seldom they were on so far, for the warm-up of a dynamic run.

    An element that was never on has B = 0, and some heuristics would score it 0 for ever.

    Args:
        candidates: every element; their scores are not looked at.
        times_on: key → number of allocations in which the element was on; missing: 0.
    """
    return [dataclasses.replace(candidate, score=-float(times_on.get(candidate.key, 0))) for candidate in candidates]


def of_kind(candidates: Sequence[AnyCandidate], kind: Kind) -> list[AnyCandidate]:
    return [candidate for candidate in candidates if candidate.kind == kind]


def check_mode(mode: Mode, has_lora: bool, has_shortcuts: bool) -> None:
    """`UserError` where a mode has nothing to choose from."""
    if mode != "off" and not has_shortcuts:
        raise UserError(
            f"mode '{mode}' needs shortcuts and there are none", "expected mode 'off', or a model with shortcuts"
        )
    if mode == "off" and not has_lora:
        raise UserError("mode 'off' ranks LoRA alone and there is none", "expected mode 'separated' or 'combined'")
