"""What the user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Kind
from options.every import Options


@dataclass(frozen=True)
class Command:
    """A parsed command line."""

    action: str  # a key of `ACTIONS`
    options: Options
    given: frozenset[str]  # options that the command line or the file sets; a checkpoint gives values for the others
    notes: tuple[str, ...] = ()  # lines to print
    on_command_line: frozenset[str] = frozenset()  # options that the command line sets
    tables: Mapping[Kind, ElementConfig] = field(default_factory=dict)  # configurations that the file itself holds
    identity: str | None = None  # fingerprint of the command that this one of a requeued job stands for
