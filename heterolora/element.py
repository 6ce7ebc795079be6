"""Where an element sits, in the words that all files use."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A place of the search space.

    Attributes:
        layer: block index, from 0.
        name: canonical name, e.g. `q_proj` or `shortcut1`.
    """

    layer: int
    name: str

    @property
    def key(self) -> str:
        """The name in every file: `layer_<i>.<name>`."""
        return f"layer_{self.layer}.{self.name}"
