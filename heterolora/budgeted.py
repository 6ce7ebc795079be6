"""What a user of a front of the search asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from heterolora.choosing.ranks import Budget
from heterolora.common.errors import UserError
from heterolora.elements.rank_units import Units
from heterolora.elements.search_space import SearchSpace
from heterolora.search import Plan, Schedule


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
    units: Units = "element"

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
        budget = Budget("parameters", parameters)
        values = (self.start, self.end, every, self.smoothing, self.seed)
        return Plan(budget, self.schedule, heuristic, *values, units=self.units)
