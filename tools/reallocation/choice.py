"""Which elements are on: by scores and a budget, or as a run chose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actions.run_folder import ADAPTER, LORA
from heterolora.config import load
from heterolora.element import Element, Kind
from heterolora.family import Task
from heterolora.step_time import StepTime


@dataclass(frozen=True)
class Choice:
    """Which elements are on, at which ranks.

    Attributes:
        elements: the whole search space.
        on: the elements that are on, with their ranks.
        task: what the model learns.
        origin: what chose them.
        base: hub name or folder of the base model, if it is known.
        renormalize: whether the blocks normalise once more after the cross-layer shortcuts.
        step_time: the measured constants of the model's step, if they are known.
    """

    elements: Sequence[Element]
    on: Sequence[Element]
    task: Task
    origin: str
    base: str | None
    renormalize: bool = False
    step_time: StepTime | None = None

    def of_kind(self, kind: Kind) -> list[Element]:
        """The elements of one kind that are on."""
        return [element for element in self.on if element.kind == kind]


def choice_of_run(folder: Path) -> Choice:
    """The LoRA elements that a run chose, and those that it left off. Reads no weights of the base.

    Raises UserError if the folder lacks the adapter or the configuration that a finished run has.
    """
    from actions.parse import parse
    from actions.resolve import resolve
    from heterolora.adapt import plan
    from model.load import load_config
    from model.peft_format.writing import base_location
    from model.skeleton import skeleton

    result = load(folder / LORA, "lora")
    every = replace(result, sites={site: replace(settings, disabled=False) for site, settings in result.sites.items()})
    request = resolve(parse(["test", "--load", str(folder / ADAPTER)]))
    network = skeleton(load_config(request.base.name, request.spec), request.spec.task)
    elements, on = (plan(network, request.adapted.family, config).elements for config in (every, result))
    origin, base = f"the result of {folder.name}", base_location(request.base.name)
    return Choice(elements, on, request.spec.task, origin, base)
