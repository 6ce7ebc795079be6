"""What is to be done, decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from actions.command.configurations import Configs
from dataset.spec import DatasetSpec
from model.family import AdaptedName
from options.every import Options

if TYPE_CHECKING:
    from model.checkpoint import BaseSource, Checkpoint, ModelRecord
    from model.peft_format.adapter import Adapter


@dataclass(frozen=True)
class Request:
    """A checked command."""

    action: str
    options: Options  # values of a checkpoint and defaults that depend on other options are filled in
    spec: DatasetSpec
    adapted: AdaptedName | None  # family and kind of an adapted model, `None` for a plain one
    base: BaseSource
    checkpoint: Checkpoint | None  # that `--load` names
    adapter: Adapter | None  # that `--load` names
    resumes: bool  # whether the run of the checkpoint is continued
    fingerprint: str  # of the command, see `actions.request.resuming`
    notes: tuple[str, ...]  # lines to print
    configs: Configs = field(default_factory=dict)  # its LoRA and, for an `_ags` model, shortcut configuration
    # What `configs` must equal: configurations given beside a checkpoint, or those of an adapter.
    must_agree: Configs = field(default_factory=dict)
    names_run: bool = False  # whether the command line names the run, which must not be another one's name

    @property
    def resumed(self) -> Checkpoint | None:
        """The checkpoint whose run is continued."""
        return self.checkpoint if self.resumes else None

    @property
    def recorded(self) -> ModelRecord | None:
        """The record of the checkpoint or adapter. Adapters that were made elsewhere have none."""
        loaded = self.checkpoint or self.adapter
        return None if loaded is None else loaded.record
