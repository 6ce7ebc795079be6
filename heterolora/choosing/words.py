"""A choice of elements in words, with its cost and a warning where it is degenerate. Pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from heterolora.choosing.step_time import StepTime
from heterolora.elements.element import Element, Place

if TYPE_CHECKING:
    from heterolora.choosing.history import History


def choice_in_words(places: Sequence[Place], on: Collection[str]) -> str:
    """Such as `6 of 24 places on, all in block 0`. `on` are the keys of the places that are on."""
    blocks = sorted({place.layer for place in places if place.key in on and not place.is_outside})
    every = sorted({place.layer for place in places if not place.is_outside})
    outside = [place.name for place in places if place.key in on and place.is_outside]
    if not blocks:
        where = ""
    elif len(blocks) == 1:
        where = f", all in block {blocks[0]}" if len(every) > 1 else ""
    elif blocks == every:
        where = ", in every block"
    else:
        where = f", in blocks {_spans(blocks)}"
    where += f", {'and ' if blocks else ''}{' and '.join(outside)}" if outside else ""
    return f"{len(set(on) & {place.key for place in places})} of {len(places)} places on{where}"


def with_cost(
    elements: Sequence[Element],
    on: Sequence[Element],
    step_time: StepTime | None = None,
    places: Sequence[Place] | None = None,
) -> str:
    """`choice_in_words`, and the shares of what all elements cost: `0.25 of the parameters, 0.9 of the step time`.

    The time is known only with the constants of the model, `step_time`. `places` are those of the whole model, which
    may have an element in some of them only.
    """
    places = elements if places is None else places
    of_which = "" if len(places) == len(elements) else f"of the {len(elements)} that could be: "
    spent, total = (sum(element.parameters for element in some) for some in (on, elements))
    costs = [f"{'all' if spent == total else f'{spent / total:.2g}'} of the parameters"]
    if step_time is not None and step_time.of(elements) > 0:
        costs.append(f"{step_time.of(on) / step_time.of(elements):.2g} of the step time")
    return f"{choice_in_words(places, {element.key for element in on})}; {of_which}{', '.join(costs)}"


def degenerate(places: Sequence[Place], on: Collection[str]) -> str | None:
    """A warning if one block of several holds all places that are on; None otherwise."""
    chosen = [place for place in places if place.key in on]
    blocks = {place.layer for place in chosen}
    if len(chosen) < 2 or len(blocks) > 1 or len({place.layer for place in places}) == 1:
        return None
    return (
        f"block {blocks.pop()} holds everything that is on: the scores of blocks may differ in scale rather than in "
        "importance; compare with uniform LoRA of as many parameters, or use another heuristic"
    )


def never_changed(history: History) -> str | None:
    """A warning if several reallocations all made the same choice; None otherwise."""
    decisions = history.decisions
    if len(decisions) < 3 or len({decision.on for decision in decisions}) > 1:
        return None
    return (
        f"all {len(decisions)} reallocations made the same choice: training this choice from the start (imp-test, then "
        "train) costs less"
    )


def _spans(numbers: Sequence[int]) -> str:
    """`0, 2–4` of 0, 2, 3, 4."""
    spans = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        spans.append(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}")
    return ", ".join(spans)
