"""How few elements are enough: the last choice of a search that shrinks with which the validation loss held."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Tolerance:
    """The validation loss holds if it is at most `rise` above the lowest one before.

    Attributes:
        lowest: the lowest validation loss so far.
        held: the keys of the elements that were on at the last validation that held.
        stopped: whether a later one did not hold. From then on the choice is `held`.
    """

    rise: float
    lowest: float = math.inf
    held: tuple[str, ...] = ()
    stopped: bool = False

    def judge(self, loss: float, on: Collection[str]) -> None:
        """Take in the loss of a validation with the elements `on`."""
        if self.stopped:
            return
        if loss <= self.lowest + self.rise:
            self.lowest, self.held = min(loss, self.lowest), tuple(sorted(on))
        elif self.held:
            self.stopped = True

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "held": list(self.held), "stopped": self.stopped}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lowest, self.held, self.stopped = state["lowest"], tuple(state["held"]), state["stopped"]
