"""When a search decides, what it begins with, and what it goes back to. No trainer is needed for it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from heterolora.choosing.ranks import Budget
from heterolora.search import Plan, Search
from tests.adapted import adapted, lora_config

STEPS = 20


def search_with(plan: Plan, stop: SimpleNamespace | None = None) -> Search:
    return Search(adapted("roberta", lora=lora_config()).space, plan, STEPS, stop)


def due(search: Search) -> list[int]:
    return [step for step in range(STEPS + 1) if search.due(step)]


def test_it_decides_while_the_budget_falls_and_when_it_is_reached() -> None:
    """From a tenth of the run, which is step 2, to the half, step 10."""
    search = search_with(Plan(Budget("share", 0.5), every=3))
    assert due(search) == [0, 3, 6, 9, 10]
    assert [step for step in range(STEPS + 1) if search.settled(step)] == [*range(11, STEPS + 1)]


def test_a_fixed_budget_holds_from_the_first_step_to_the_last() -> None:
    search = search_with(Plan(Budget("share", 0.5), "fixed", every=5))
    assert due(search) == [0, 5, 10, 15]
    assert all(search.settled(step) for step in range(STEPS + 1))


def test_it_begins_with_everything() -> None:
    search = search_with(Plan(Budget("share", 0.5)))
    search.space.switch(frozenset())
    search.decide(0)
    assert search.on == {element.key for element in search.space.elements}


@pytest.mark.parametrize("stopped", [False, True])
def test_it_goes_back_to_what_held(stopped: bool) -> None:
    stop = SimpleNamespace(held=(), stopped=False)
    search = search_with(Plan(Budget("share", 0.5)), stop)
    search.decide(0)
    stop.held, stop.stopped = tuple(sorted(search.on)[:2]), stopped
    assert search.due(15) == stopped
    assert search.settled(15) != stopped
    search.decide(15)
    assert (search.on == {*stop.held}) == stopped
    assert search.settled(15)
    assert not search.due(15)
