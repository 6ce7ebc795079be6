"""The decisions of a dynamic run: in memory, in a checkpoint, and in two files.

`reallocation_history.toml` has a table for each reallocation. `reallocation_frequency.toml` counts how often each
element was on.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heterolora.common.checks import TEXT, TRUTH, Condition, check_keys, check_known, number, whole_number
from heterolora.common.errors import UserError
from heterolora.common.files import to_toml, whole, write_text
from heterolora.common.outside import read_toml, reading
from heterolora.elements.element import OUTSIDE, Place

HISTORY, FREQUENCY = "reallocation_history.toml", "reallocation_frequency.toml"

_COUNT = whole_number(0, most=10**9)
_DECISION = {"epoch": _COUNT, "step": _COUNT, "elements": Condition(lambda value: isinstance(value, list), "tables")}
_ELEMENT = {"layer": _COUNT, "name": TEXT, "score": number(lambda _: True, "a finite number"), "on": TRUTH}


@dataclass(frozen=True)
class Decision:
    """One reallocation, before batch `step` of `epoch` (both from 0).

    Attributes:
        scores: the value by which each place was ranked: the heuristic's score or, during the warm-up of a dynamic run,
            minus the number of times that the element was on before.
        on: for each place, whether its element is on from here.
    """

    epoch: int
    step: int
    scores: tuple[float, ...]
    on: tuple[bool, ...]


@dataclass
class History:
    """All reallocations of a run so far, in order, and the scored places, in the order of the search space."""

    places: tuple[Place, ...]
    decisions: list[Decision] = field(default_factory=list)

    def times_on(self) -> dict[str, int]:
        """Key -> number of reallocations after which the element was on."""
        return {place.key: sum(each.on[i] for each in self.decisions) for i, place in enumerate(self.places)}

    def last_on(self) -> frozenset[str]:
        """The keys of the elements that are on after the last reallocation."""
        return frozenset(place.key for place, on in zip(self.places, self.decisions[-1].on, strict=True) if on)

    def churn(self) -> tuple[float, ...]:
        """The share of elements that each reallocation switched; 0 for the first."""
        pairs = itertools.pairwise(decision.on for decision in self.decisions)
        later = [sum(a != b for a, b in zip(*pair, strict=True)) / len(self.places) for pair in pairs]
        return (0.0, *later) if self.decisions else ()

    def state_dict(self) -> dict[str, Any]:
        """The history in a checkpoint: plain values and tensors."""
        import torch  # which readers of a history do not need

        shape = (len(self.decisions), len(self.places))
        return {
            "places": [place.key for place in self.places],
            "when": [(decision.epoch, decision.step) for decision in self.decisions],
            "scores": torch.tensor([d.scores for d in self.decisions], dtype=torch.float64).reshape(shape),
            "on": torch.tensor([d.on for d in self.decisions], dtype=torch.bool).reshape(shape),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        with reading("the reallocations in", "the checkpoint", "resume from a checkpoint of train-dyrealloc"):
            if state["places"] != [place.key for place in self.places]:
                found = "the run of the checkpoint had another search space"
                raise UserError(found, "resume with its own configurations")
            rows = zip(state["when"], state["scores"].tolist(), state["on"].tolist(), strict=True)
            self.decisions = [Decision(*_when(*when), tuple(scores), tuple(on)) for when, scores, on in rows]

    def write(self, folder: Path) -> None:
        """Write both files."""
        write_text(folder / HISTORY, "".join(map(self._block, range(len(self.decisions)))))
        self.write_frequency(folder)

    def append(self, folder: Path) -> None:
        """Append the last decision to the file. The file is valid at every moment."""
        path = folder / HISTORY
        with whole(path) as unfinished:
            if path.is_file():
                shutil.copyfile(path, unfinished)
            with unfinished.open("a", encoding="utf-8") as file:
                file.write(self._block(len(self.decisions) - 1))
        self.write_frequency(folder)

    def write_frequency(self, folder: Path) -> None:
        times = self.times_on()
        by_layer: dict[str, dict[str, int]] = {}
        for place in self.places:
            by_layer.setdefault(place.table, {})[place.name] = times[place.key]
        write_text(folder / FREQUENCY, to_toml({"total_reallocation_number": len(self.decisions), **by_layer}))

    def _block(self, index: int) -> str:
        decision = self.decisions[index]
        rows = zip(self.places, decision.scores, decision.on, strict=True)
        elements = [{**_of_place(place), "score": score, "on": on} for place, score, on in rows]
        table = {"epoch": decision.epoch, "step": decision.step, "elements": elements}
        return to_toml({f"dyrealloc_{index}": table}) + "\n"


def _when(epoch: Any, step: Any) -> tuple[int, int]:
    return _COUNT.check("a reallocation", "epoch", epoch), _COUNT.check("a reallocation", "step", step)


def _of_place(place: Place) -> dict[str, Any]:
    return {"name": place.name} if place.is_outside else {"layer": place.layer, "name": place.name}


def _place(where: str, row: Mapping[str, Any]) -> Place:
    """The place that a row names. Outside of the blocks it has no number."""
    if "layer" in row:
        return Place(row["layer"], row["name"])
    check_known(f"{where} without layer", row["name"], OUTSIDE)
    return Place(OUTSIDE[row["name"]], row["name"])


def read(folder: Path) -> History:
    """Read the history of a run folder. Raises UserError if the file cannot be read or is not a history."""
    path, expected = folder / HISTORY, "give the run folder of train-dyrealloc"
    document = read_toml(path, "the reallocation history", expected)
    if not document:
        raise UserError(f"{path} holds no reallocation yet", "wait for the first reallocation")
    if document.keys() != {f"dyrealloc_{index}" for index in range(len(document))}:
        raise UserError(f"{path} is not a reallocation history", expected)
    decisions, places = [], []
    for index in range(len(document)):
        table = check_keys(f"{path}: [dyrealloc_{index}]", _DECISION, document[f"dyrealloc_{index}"], expected)
        where = f"{path}: an element of [dyrealloc_{index}]"
        rows = [check_keys(where, _ELEMENT, row, expected, optional=("layer",)) for row in table["elements"]]
        places.append(tuple(_place(where, row) for row in rows))
        scores, on = tuple(float(row["score"]) for row in rows), tuple(row["on"] for row in rows)
        decisions.append(Decision(table["epoch"], table["step"], scores, on))
    if any(other != places[0] for other in places):
        raise UserError(f"{path}: its reallocations differ in their elements", expected)
    if not places[0] or len(set(places[0])) < len(places[0]):
        raise UserError(f"{path} names an element twice, or none", expected)
    return History(places[0], decisions)
