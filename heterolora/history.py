"""What was decided when: in memory, in a checkpoint, and in the two files of a dynamic run.

`reallocation_history.toml` has a table for each reallocation, `reallocation_frequency.toml` counts how often each
element was on.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toml
import torch

from heterolora.element import Place
from heterolora.errors import UserError
from heterolora.files import whole, write_text

HISTORY, FREQUENCY = "reallocation_history.toml", "reallocation_frequency.toml"


@dataclass(frozen=True)
class Decision:
    """One reallocation.

    Attributes:
        epoch: from 0.
        step: batch within the epoch, from 0, before which it happened.
        scores: of each place, what it was ranked by: the heuristic's score, or, during the warm-up of a dynamic run,
            minus the number of times that the element was on before.
        on: of each place, whether its element is on from here.
    """

    epoch: int
    step: int
    scores: tuple[float, ...]
    on: tuple[bool, ...]


@dataclass
class History:
    """All reallocations of a run so far, in order.

    Attributes:
        places: what is scored, in the order of the search space.
        decisions: one for each reallocation.
    """

    places: tuple[Place, ...]
    decisions: list[Decision] = field(default_factory=list)

    def times_on(self) -> dict[str, int]:
        """Key → how many reallocations left the element on."""
        counts = [sum(decision.on[i] for decision in self.decisions) for i in range(len(self.places))]
        return {place.key: times for place, times in zip(self.places, counts, strict=True)}

    def last_on(self) -> frozenset[str]:
        """The keys of the elements that the last reallocation left on."""
        return frozenset(place.key for place, on in zip(self.places, self.decisions[-1].on, strict=True) if on)

    def churn(self) -> tuple[float, ...]:
        """Of each reallocation the share of elements that it switched; 0 for the first."""
        pairs = itertools.pairwise(decision.on for decision in self.decisions)
        later = [sum(a != b for a, b in zip(*pair, strict=True)) / len(self.places) for pair in pairs]
        return (0.0, *later) if self.decisions else ()

    # ---- in a checkpoint: plain values and tensors

    def state_dict(self) -> dict[str, Any]:
        shape = (len(self.decisions), len(self.places))
        return {
            "places": [place.key for place in self.places],
            "when": [(decision.epoch, decision.step) for decision in self.decisions],
            "scores": torch.tensor([d.scores for d in self.decisions], dtype=torch.float64).reshape(shape),
            "on": torch.tensor([d.on for d in self.decisions], dtype=torch.bool).reshape(shape),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["places"] != [place.key for place in self.places]:
            raise UserError("the checkpoint's run had another search space", "resume with its own configurations")
        rows = zip(state["when"], state["scores"].tolist(), state["on"].tolist(), strict=True)
        self.decisions = [Decision(epoch, step, tuple(scores), tuple(on)) for (epoch, step), scores, on in rows]

    # ---- files

    def write(self, folder: Path) -> None:
        """Both files anew."""
        text = "".join(self._block(index) for index in range(len(self.decisions)))
        write_text(folder / HISTORY, text)
        self.write_frequency(folder)

    def append(self, folder: Path) -> None:
        """The last decision behind those that the file holds; the file is valid at every moment."""
        path = folder / HISTORY
        with whole(path) as unfinished:
            if path.is_file():
                shutil.copyfile(path, unfinished)
            with unfinished.open("a", encoding="utf-8") as file:
                file.write(self._block(len(self.decisions) - 1))
        self.write_frequency(folder)

    def write_frequency(self, folder: Path) -> None:
        times, by_layer = self.times_on(), {}
        for place in self.places:
            by_layer.setdefault(f"layer_{place.layer}", {})[place.name] = times[place.key]
        document = {"total_reallocation_number": len(self.decisions), **by_layer}
        write_text(folder / FREQUENCY, toml.dumps(document))

    def _block(self, index: int) -> str:
        decision = self.decisions[index]
        rows = zip(self.places, decision.scores, decision.on, strict=True)
        elements = [{"layer": p.layer, "name": p.name, "score": score, "on": on} for p, score, on in rows]
        table = {"epoch": decision.epoch, "step": decision.step, "elements": elements}
        return toml.dumps({f"dyrealloc_{index}": table}) + "\n"


def read(folder: Path) -> History:
    """The history of a run folder.

    Raises:
        UserError: there is none, or its file is not one.
    """
    path = folder / HISTORY
    expected = "give the run folder of train-dyrealloc"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read '{path}' ({os.strerror(error.errno or 0)})", expected) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error})", expected) from None
    try:
        tables = [document[f"dyrealloc_{index}"] for index in range(len(document))]
        places = [tuple(Place(row["layer"], row["name"]) for row in table["elements"]) for table in tables]
        decisions = [_decision(table) for table in tables]
    except (KeyError, TypeError):
        raise UserError(f"{path} is no reallocation history", expected) from None
    if not decisions:
        raise UserError(f"{path} holds no reallocation yet", "wait for the first one")
    if any(other != places[0] for other in places):
        raise UserError(f"{path}: its reallocations differ in their elements", expected)
    return History(places[0], decisions)


def _decision(table: Mapping[str, Any]) -> Decision:
    rows: Sequence[Mapping[str, Any]] = table["elements"]
    return Decision(
        table["epoch"],
        table["step"],
        tuple(float(row["score"]) for row in rows),
        tuple(bool(row["on"]) for row in rows),
    )
