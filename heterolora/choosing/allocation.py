"""Scores -> which elements are on: the highest scores within a budget. Pure functions, without networks or training."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from numbers import Real
from typing import Literal

from heterolora.common.errors import NotFiniteError, UserError, shown
from heterolora.elements.element import Element, Kind

Mode = Literal["off", "separated", "combined"]
MODES: tuple[Mode, ...] = ("off", "separated", "combined")


@dataclass(frozen=True)
class Scored:
    """An element and its score; a higher score is more important.

    Attributes:
        by_rank: the scores of its first rank, its second, …, which never rise; empty if the heuristic does not give
            any. Their sum is the score.
        halves: the scores from each half of the scoring batches; empty if they were not computed.
    """

    element: Element
    score: float
    by_rank: tuple[float, ...] = ()
    halves: tuple[float, ...] = ()


@dataclass(frozen=True)
class ElementCounts:
    """How much of each kind may be on, in the unit of `element_counts`."""

    lora: int
    shortcut: int


def default_mode(has_shortcuts: bool) -> Mode:
    return "combined" if has_shortcuts else "off"


def element_counts(percentile: float | Decimal, lora: int, shortcut: int) -> ElementCounts:
    """⌊p · lora⌋ and p · shortcut rounded half up, in exact decimals: 0.29 of 100 is 29; in floats it is 28.99….

    If both are 0, one element may be on: a LoRA element if there is one. The amounts are elements, or another unit.
    Raises UserError if p is outside (0, 1].
    """
    p = Decimal(str(percentile))
    if p.is_nan() or not 0 < p <= 1:
        raise UserError(f"the share of elements to turn on is {percentile}", "expected a number above 0 and at most 1")
    some_lora = int((p * lora).to_integral_value(ROUND_FLOOR))
    some_shortcuts = int((p * shortcut).to_integral_value(ROUND_HALF_UP))
    if some_lora + some_shortcuts > 0:
        return ElementCounts(some_lora, some_shortcuts)
    return ElementCounts(1, 0) if lora else ElementCounts(0, min(1, shortcut))


def tie_generator(seed: int, draw: int) -> random.Random:
    """The generator that breaks ties in one allocation.

    It depends only on `--seed` and the number of the allocation. So it is the same on every process, changes no other
    random state, and needs no state in a checkpoint.
    """
    return random.Random(f"allocation {draw} of a run with seed {seed}")


def ranked(scored: Sequence[Scored], generator: random.Random) -> list[Scored]:
    """`scored` by score, the highest first, ties in random order. Raises UserError if a score is NaN or infinite."""
    for item in scored:
        if not isinstance(item.score, Real):
            raise UserError(f"the score of {item.element.key} is {shown(item.score)}", "expected a number")
        if not math.isfinite(item.score):
            found = f"the score of {item.element.key} is {item.score}"
            raise NotFiniteError(found, "expected a finite score; check the loss and the precision")
    drawn = sorted(scored, key=lambda item: (item.element.layer, item.element.name))
    generator.shuffle(drawn)
    return sorted(drawn, key=lambda item: -item.score)  # stable: ties keep their random order


def by_least_often_on(elements: Sequence[Element], times_on: Mapping[str, int]) -> list[Scored]:
    """The elements, scored by how rarely they were on so far, for the warm-up of a dynamic run.

    An element that was never on (0, or missing in `times_on`) has B = 0, and some heuristics always score it 0.
    """
    return [Scored(element, -float(times_on.get(element.key, 0))) for element in elements]


def of_kind(scored: Iterable[Scored], kind: Kind) -> list[Scored]:
    return [item for item in scored if item.element.kind == kind]


def check_mode(mode: Mode, has_lora: bool, has_shortcuts: bool) -> None:
    """Raise `UserError` if the mode has no elements to choose from."""
    if mode != "off" and not has_shortcuts:
        found = f"mode '{mode}' needs shortcuts and there are none"
        raise UserError(found, "expected mode 'off', or a model with shortcuts")
    if mode == "off" and not has_lora:
        raise UserError("mode 'off' ranks only LoRA and there is none", "expected mode 'separated' or 'combined'")
