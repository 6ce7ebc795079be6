"""What a PEFT adapter folder that `--load` names decides: model, base and configurations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import model.family as families
from actions.options import Options
from actions.parse import Command
from heterolora.config import ElementConfig
from heterolora.element import Kind
from heterolora.errors import UserError
from model.family import AdaptedName
from model.peft_format import FILES

if TYPE_CHECKING:
    from model.checkpoint import BaseSource
    from model.peft_format.adapter import Adapter


@dataclass(frozen=True)
class Start:
    """An adapter, and the base that it goes onto.

    Attributes:
        adapter: the adapter.
        base: the recorded base, or `--backbone-model` if it moved.
    """

    adapter: Adapter
    base: BaseSource

    def recorded_options(self, command: Command) -> dict[str, Any]:
        """Options that the adapter knows, as in a configuration file: an adapter made here knows its model and data.

        Raises:
            UserError: `--model` is given and can't be what the adapter is.
        """
        record = self.adapter.record
        recorded = {} if record is None else dict(record.options)
        if "model" in command.given:
            self._check_model(command.options)
        elif record is None:
            recorded["model"] = self._model_name()
        return recorded | {"pretrained": self.base.pretrained}

    def configs(self, adapted: AdaptedName | None, options: Options) -> dict[Kind, ElementConfig]:
        """The configurations that make the adapter's elements."""
        from model.peft_format.fit import lora_config

        if adapted is None:
            raise UserError(
                f"{self.adapter.folder} is a LoRA adapter, and '{options.model}' is a plain model",
                "leave --model out, or use a model such as opt_lora",
            )
        configs: dict[Kind, ElementConfig] = {"lora": lora_config(self.adapter, adapted.family)}
        if self.adapter.shortcut is not None:
            configs["shortcut"] = self.adapter.shortcut
        return configs

    def _check_model(self, options: Options) -> None:
        adapted = families.parse_model_name(options.model)
        if self.adapter.shortcut is not None and adapted is not None and not adapted.shortcuts:
            raise UserError(
                f"{self.adapter.folder} has shortcuts, and '{options.model}' has none",
                f"leave --model out, or give {options.model}_ags",
            )

    def _model_name(self) -> str:
        """Told from the base's own configuration."""
        from transformers import AutoConfig

        try:
            model_type = AutoConfig.from_pretrained(self.base.name).model_type
        except (OSError, ValueError):
            raise UserError(
                f"the base '{self.base.name}' that {self.adapter.folder} names can't be loaded",
                "give its hub name or folder as --backbone-model",
            ) from None
        family = families.for_model_type(model_type)
        if family is None:
            raise UserError(
                f"{self.adapter.folder} is an adapter for a model of type '{model_type}'",
                f"expected one of the families {', '.join(families.names())}",
            )
        return f"{family.name}_lora"


def start_from(options: Options) -> Start:
    """Read the adapter that `--load` names: a folder, or a repository on the hub.

    Raises:
        UserError: it can't be had, holds no LoRA adapter that can be loaded, or names no base.
    """
    from model.checkpoint import BaseSource
    from model.peft_format.adapter import read_adapter

    if options.load is None:
        raise UserError(
            "--load-type peft has no adapter", "give --load with the folder or the hub name of a PEFT LoRA adapter"
        )
    adapter = read_adapter(_folder(options.load))
    record, settings, moved = adapter.record, adapter.settings, options.backbone_model
    if moved is not None:
        return Start(adapter, BaseSource(moved, seed=options.seed if record is None else record.base.seed))
    if record is not None:
        return Start(adapter, record.base)
    if settings.base is None:
        raise UserError(f"{settings.source} names no base model", "give its hub name or folder as --backbone-model")
    if settings.revision is not None:
        raise UserError(
            f"{settings.source} wants revision '{settings.revision}' of {settings.base}",
            "download that revision, and give its folder as --backbone-model",
        )
    return Start(adapter, BaseSource(settings.base, seed=options.seed))


def _folder(name: str) -> Path:
    """Where the adapter lies. What is no folder here, but looks like `owner/name`, is fetched from the hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    if Path(name).exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return Path(name)
    try:
        return Path(snapshot_download(name, allow_patterns=FILES))
    except (OSError, ValueError, HTTPError):
        raise UserError(
            f"'{name}' is no folder here, and the hub gives no adapter of that name",
            "check the name and the connection (huggingface-cli login for a private one), or give a folder",
        ) from None
