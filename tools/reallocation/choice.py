"""Which elements are on: by scores and a budget, or as a run chose them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actions.run.run_folder import ADAPTER, LORA, SHORTCUT
from heterolora.choosing.step_time import StepTime
from heterolora.common.checks import present
from heterolora.elements.config import ElementConfig, load
from heterolora.elements.element import Element, Kind
from heterolora.elements.task import Task


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
    """The elements that a run chose, and those that it left off. Reads no weights of the base.

    Raises UserError if the folder lacks the adapter or the configuration that a finished run has.
    """
    from actions.command.parse import parse_command
    from actions.request.elements import request_of
    from heterolora.elements.adapt import placement_of
    from model.checkpoint import base_location
    from model.load import load_config
    from model.skeleton import skeleton

    files: dict[Kind, str] = {"lora": LORA, "shortcut": SHORTCUT}
    result = {
        kind: load(folder / file, kind, any_name=True)
        for kind, file in files.items()
        if (folder / file).is_file() or kind == "lora"
    }
    every = {kind: _all_on(config) for kind, config in result.items()}
    request = request_of(parse_command(["test", "--load", str(folder / ADAPTER)]))
    network = skeleton(load_config(request.base.name, request.spec), request.spec.task)
    family = present(request.adapted).family
    elements, on = (placement_of(network, family, **configs).elements for configs in (every, result))
    origin, base = f"the result of {folder.name}", base_location(request.base.name)
    return Choice(elements, on, request.spec.task, origin, base)


def _all_on(config: ElementConfig) -> ElementConfig:
    """The configuration with all places on. A place without a rank gets the settings of the highest one."""
    ranked = {site: replace(settings, disabled=False) for site, settings in config.sites.items() if settings.rank > 0}
    default = max(ranked.values(), key=lambda settings: settings.rank, default=config.default)
    return replace(config, default=default, sites=ranked)
