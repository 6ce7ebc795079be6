"""What the user wrote, as two layers of plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actions.command.configurations import KEYS
from heterolora.elements.config import ElementConfig
from heterolora.elements.element import Kind
from model.peft_format import is_adapter
from options.every import declared, defaults, plain


@dataclass(frozen=True)
class Command:
    """A parsed command line. A layer is option -> value; None stands for the default."""

    action: str  # a key of `ACTIONS`
    typed: Mapping[str, Any]  # options that the command line sets
    in_file: Mapping[str, Any] = field(default_factory=dict)  # options that the file sets and it does not
    tables: Mapping[Kind, ElementConfig] = field(default_factory=dict)  # configurations that the file itself holds
    notes: tuple[str, ...] = ()  # lines to print
    identity: str | None = None  # fingerprint of the command that this one of a requeued job stands for

    @property
    def given(self) -> dict[str, Any]:
        """Option -> value, of those that the command line or the file sets."""
        known, given = declared(), {**self.in_file, **self.typed}
        return {name: known[name].default if value is None else value for name, value in given.items()}

    @property
    def values(self) -> dict[str, Any]:
        """Option -> value, with the defaults of all others."""
        return {**defaults(), **self.given}

    @property
    def load_type(self) -> str:
        """What `--load` names: `--load-type`, by default inferred from the name."""
        return self.values["load_type"] or inferred_load_type(self.values["load"])

    @property
    def fingerprint(self) -> str:
        """A hash of the action, of all options that a resumed run may not change, and of the configurations.

        A requeued job has the same one.
        """
        if self.identity is not None:
            return self.identity
        known = declared()
        values = {
            name: value for name, value in plain(self.values).items() if name in KEYS or known[name].resume != "free"
        }
        values |= {kind: config.to_document() for kind, config in self.tables.items()}
        return hashlib.sha256(json.dumps([self.action, values], sort_keys=True).encode()).hexdigest()[:16]


def inferred_load_type(load: str | None) -> str:
    """What `--load` names: `pl`, a checkpoint; `peft`, an adapter; `pt`, a state dict; or `hf`, a base."""
    suffix = Path(load or "").suffix
    if suffix == ".ckpt":
        return "pl"
    if load and is_adapter(load):
        return "peft"
    return "pt" if suffix in (".safetensors", ".pt", ".pth", ".bin") else "hf"
