"""A choice in words: where it is, what it costs, and whether it is degenerate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heterolora.choosing.history import Decision, History
from heterolora.choosing.step_time import StepTime
from heterolora.choosing.words import choice_in_words, degenerate, never_changed, with_cost
from heterolora.elements.element import Place
from tests.run_folders import element_scores

ELEMENTS = [item.element for item in element_scores(5, shortcuts=False)]


def keys(*places: tuple[int, str]) -> frozenset[str]:
    return frozenset(Place(*place).key for place in places)


@pytest.mark.parametrize(
    ("on", "words"),
    [
        (keys((0, "q_proj"), (0, "w1")), "2 of 30 places on, all in block 0"),
        (keys((0, "q_proj"), (2, "w1"), (3, "w1"), (3, "w2")), "4 of 30 places on, in blocks 0, 2–3"),
        (keys(*((layer, "w1") for layer in range(5))), "5 of 30 places on, in every block"),
        (frozenset(), "0 of 30 places on"),
    ],
)
def test_where_it_is(on: frozenset[str], words: str) -> None:
    assert choice_in_words(ELEMENTS, on) == words


def test_what_it_costs() -> None:
    on = ELEMENTS[:6]
    assert with_cost(ELEMENTS, on) == "6 of 30 places on, all in block 0; 0.2 of the parameters"
    twice = [replace(element, settings=element.settings.at(2 * element.rank)) for element in on]
    assert with_cost(ELEMENTS, twice).endswith("; 0.4 of the parameters")
    upper = [element for element in ELEMENTS if element.layer >= 3]
    time = StepTime(blocks=5, forward=0.5, block=0.1, width=0.0)
    assert with_cost(ELEMENTS, upper, time).endswith("; 0.4 of the parameters, 0.7 of the step time")
    some = [element for element in ELEMENTS if element.name == "q_proj"]  # as with --target q_proj
    words = "2 of 30 places on, in blocks 0–1; of the 5 that could be: 0.4 of the parameters"
    assert with_cost(some, some[:2], places=ELEMENTS) == words
    assert with_cost(ELEMENTS, ELEMENTS) == "30 of 30 places on, in every block; all of the parameters"


def test_one_block_holds_all() -> None:
    assert degenerate(ELEMENTS, keys((1, "q_proj"), (1, "w1"))).startswith("block 1 holds everything that is on")
    assert degenerate(ELEMENTS, keys((1, "q_proj"), (2, "w1"))) is None
    assert degenerate(ELEMENTS, keys((1, "q_proj"))) is None
    assert degenerate(ELEMENTS[:6], keys((0, "q_proj"), (0, "w1"))) is None, "there is one block"


def test_nothing_ever_changes() -> None:
    places = (Place(0, "q_proj"), Place(1, "q_proj"))

    def history(*choices: tuple[bool, bool]) -> History:
        return History(places, [Decision(0, step, (1.0, 0.5), on) for step, on in enumerate(choices)])

    assert never_changed(history(*[(True, False)] * 3)).startswith("all 3 reallocations made the same choice")
    assert never_changed(history((True, False), (False, True), (True, False))) is None
    assert never_changed(history(*[(True, False)] * 2)) is None
