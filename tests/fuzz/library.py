"""Calls a function of the library with arguments that a case holds as JSON. A mistake is one line, as in a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import heterolora as hl


class _Net(nn.Module):
    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, width), nn.Linear(width, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(loss=self.last(self.first(x).tanh()).square().mean())


def main(arguments: Sequence[str]) -> None:
    function, given = arguments[0], {key: _value(value) for key, value in json.loads(arguments[1]).items()}
    model, batches = given.pop("model", _Net()), given.pop("batches", [{"x": torch.ones(3, 4)}] * 2)
    if function == "score":
        print(hl.score(model, batches, **given))
        return
    if function == "adapt":
        print(hl.adapt(model, **given))
        return
    if function == "to_peft":
        print(hl.to_peft(given.pop("plain", None) or hl.adapt(_Net()), **given))
        return
    if function == "compact":
        print(hl.compact(given.pop("plain", None) or hl.adapt(_Net()), **given))
        return
    scores = given.pop("scores", None) or hl.score(_Net(), batches)
    if given.keys().isdisjoint(("parameters", "total_rank", "share")):
        given["total_rank"] = 4
    print(hl.lora_config(scores, **given))


def _value(value: Any) -> Any:
    """The values that JSON does not have."""
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    if value == "@text score":
        found = hl.score(_Net(), [{"x": torch.ones(3, 4)}])
        return replace(found, scored=tuple(replace(item, score="high") for item in found.scored))
    return {"@nan": float("nan"), "@list": [object()], "@function": _none, "@width 0": _Net(0)}.get(value, value)


def _none(*_: object) -> None:
    return None
