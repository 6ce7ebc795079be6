"""LoRA adapters where a network needs them: saliency scores, budgets and ranks for any torch network.

Importing this package imports nothing heavy; each name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heterolora.adapted import adapt, to_peft
    from heterolora.choosing.scores import Scores
    from heterolora.common.errors import UserError
    from heterolora.elements.element import Element
    from heterolora.elements.family import Family
    from heterolora.elements.inside import compact
    from heterolora.library import lora_config, score
    from heterolora.saliency import names as heuristics
    from heterolora.saliency import register

__version__ = "0.2.0"
__all__ = [
    "Element",
    "Family",
    "Scores",
    "UserError",
    "adapt",
    "compact",
    "heuristics",
    "lora_config",
    "register",
    "score",
    "to_peft",
]

_HOMES = {
    "Element": ("heterolora.elements.element", "Element"),
    "Family": ("heterolora.elements.family", "Family"),
    "Scores": ("heterolora.choosing.scores", "Scores"),
    "UserError": ("heterolora.common.errors", "UserError"),
    "adapt": ("heterolora.adapted", "adapt"),
    "compact": ("heterolora.elements.inside", "compact"),
    "heuristics": ("heterolora.saliency", "names"),
    "lora_config": ("heterolora.library", "lora_config"),
    "register": ("heterolora.saliency", "register"),
    "score": ("heterolora.library", "score"),
    "to_peft": ("heterolora.adapted", "to_peft"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'heterolora' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)
