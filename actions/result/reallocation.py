"""The lines about the budget and the result of a search."""

from __future__ import annotations

from pathlib import Path

from actions.command.request import Request
from actions.result.scoring import training_command
from actions.run.console import note, say
from heterolora.choosing import allocation
from heterolora.choosing.allocation import Scored
from heterolora.choosing.history import FREQUENCY, HISTORY
from heterolora.choosing.ranks import TopK, assign
from heterolora.choosing.words import degenerate, never_changed, with_cost
from heterolora.common.checks import present
from heterolora.elements.search_space import SearchSpace
from heterolora.pictures.of_run import CURVE_PICTURE, FREQUENCY_PICTURE, TIMELINE_PICTURE
from model.reallocation.callback import Reallocate
from model.reallocation.tolerance import CONFIDENCE, Tolerance
from options.scoring import ReallocationOptions


def report_search(request: Request, space: SearchSpace, reallocate: Reallocate, folder: Path) -> None:
    """Print how often the search reallocated, its result, and how to train it from the start."""
    decisions = reallocate.history.decisions
    scoring = (
        "scores from the training gradients"
        if reallocate.plan.shrinks
        else f"scoring took {reallocate.share_of_time:.1%} of the training time"
    )
    say(f"{len(decisions)} reallocations; {scoring}")
    on = [low_rank.element for low_rank in space.on()]
    keys, elements, places = {element.key for element in on}, reallocate.elements, space.places()
    say(f"the result: {with_cost(elements, on, reallocate.budget.step_time, places)}")
    if (held := reallocate.tolerance) is not None:
        say(_smallest(held, space, settled=reallocate.settled()))
    for warning in (degenerate(elements, keys), never_changed(reallocate.history)):
        if warning is not None:
            note(warning)
    curve = f", {CURVE_PICTURE}" if reallocate.plan.shrinks else ""
    say(f"history: {folder / HISTORY}, {FREQUENCY}; pictures: {FREQUENCY_PICTURE}, {TIMELINE_PICTURE}{curve}")
    if again := training_command(request.options, present(request.adapted).shortcuts, folder):
        say("\n".join(["next, to train this choice from the start:", *again]))


def _smallest(found: Tolerance, space: SearchSpace, settled: bool) -> str:
    """The size that a search with a tolerance ends with."""
    held = [element for element in space.elements if element.key in found.held]
    size = f"{len(held)} of {len(space)} elements, {sum(element.parameters for element in held):,} parameters"
    if found.held_by is not None:
        size += f", {found.held_by.text(signed=True)} against the lowest loss before"
    found_size = f"the smallest size with which the validation loss held: {size}"
    if not found.stopped:
        return found_size if settled else f"{found_size}; training ended before the search did"
    last = present(found.last)
    ended = "" if settled else "; training ended before it went back to it"
    if found.verdict(last) == "risen":
        return f"{found_size}; that of a smaller one was {last.text(signed=True)}{ended}"
    more = "the rows do not show whether smaller ones hold; validate on more, or raise --shrink-tolerance"
    return f"{found_size}; {more}{ended}"


def budget_in_words(space: SearchSpace, options: ReallocationOptions) -> str:
    """A line that says how many elements, or parameters, will be on. `space` has what is turned on and off."""
    when, what = "at the end" if options.shrinks else "at a time", "ranks" if options.by_rank else "elements"
    if options.shrink_tolerance is not None:
        rise = f"by at most {options.shrink_tolerance:g} over the lowest before"
        held = (
            f"as few elements as let the validation loss rise {rise}, with intervals of {CONFIDENCE:.0%} over its rows"
        )
        return f"budget (mode {options.dyrealloc_ags_mode}): {held}"
    if options.budget_time is not None:
        part = f"{options.budget_time:g} of the time of a step with all elements on"
        return f"budget (mode {options.dyrealloc_ags_mode}): {part}"
    if options.budget_parameters is not None:
        unscored = [Scored(element, 0.0) for element in space.elements]
        ties = allocation.tie_generator(0, 0)
        parts = assign(unscored, TopK(), options.budget, present(options.dyrealloc_ags_mode), ties).spending
        texts = (f"{part.budget:,} of {part.size:,} parameters of {part.title}" for part in parts)
        return f"budget (mode {options.dyrealloc_ags_mode}): {' and '.join(texts)} on {when}"
    mode, lora, shortcuts = options.dyrealloc_ags_mode, len(space.of_kind("lora")), len(space.of_kind("shortcut"))
    share = allocation.element_counts(options.budget.amount, lora, 0 if mode == "off" else shortcuts)
    if mode == "combined":
        text = f"{share.lora + share.shortcut} of {lora + shortcuts} {what}"
    else:
        text = f"{share.lora} of {lora} LoRA {what}"
        if shortcuts:
            text += f" and {shortcuts if mode == 'off' else share.shortcut} of {shortcuts} shortcuts"
    return f"budget (mode {mode}): {text} on {when}"
