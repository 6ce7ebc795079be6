"""The families that have a table. Each module of this folder with a `FAMILY` table is one.

`--model lora` adapts any architecture: it uses the table that fits, and finds the places for LoRA in the network if
there is none (`model.base_family`). A table adds shortcuts and `synflow`. To add one, add such a file. Nothing else
changes. The tables are read without importing torch or transformers, so that `--help` can list them.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import os
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass

from heterolora.common.errors import UserError, nearest
from heterolora.common.outside import read_json
from heterolora.elements.element import Kind
from heterolora.elements.family import Family, always
from options.actions import ALL_MODELS

#: Stands for the family of the base model, of which `--model lora` says nothing.
OF_BASE = Family("lora", model_types=(), blocks="", linears={}, norm1="", norm2="", pre_norm=always)
_OF_BASE_NAMES = ("lora", "auto_lora")
PAGE = "docs/own-model.md"
_NUMBER = re.compile(r"[\d.]+")


@dataclass(frozen=True)
class AdaptedName:
    """The parts of `--model` for an adapted network: its family, and whether it has shortcuts in addition to LoRA.

    The family is `OF_BASE` until the base model is known.
    """

    family: Family
    shortcuts: bool

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of its elements."""
        return ("lora", "shortcut") if self.shortcuts else ("lora",)


@functools.cache
def families() -> Mapping[str, Family]:
    """Return the tables by family name, sorted."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    tables = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {table.name: table for table in sorted(tables, key=lambda table: table.name)}


def names() -> tuple[str, ...]:
    """Return the family names."""
    return tuple(families())


def model_names() -> tuple[str, ...]:
    """Return all values of `--model` for adapted networks: `lora` and, for each family, `<family>_lora`; each also
    with `_ags`.
    """
    stems = (*_OF_BASE_NAMES, *(f"{name}_lora" for name in families()))
    return tuple(f"{stem}{suffix}" for stem in stems for suffix in ("", "_ags"))


def get(name: str) -> Family:
    """Return the table of that name. Raises UserError with the nearest name if there is none."""
    if name not in families():
        raise UserError(f"the family '{name}' is not known", nearest(name, names(), ALL_MODELS))
    return families()[name]


def for_model_type(model_type: str) -> Family | None:
    """Return the table that fits a `model_type` of Hugging Face, if there is one."""
    return next((table for table in families().values() if model_type in table.model_types), None)


def check_name(name: str, load: str | None = None) -> None:
    """Raise UserError for a `--model` that is similar to an adapted network's. Other names may exist on the hub.

    `load` is `--load`: if it is a folder of a base model, the message names its architecture.
    """
    if parse_model_name(name) is not None or os.path.isdir(name):
        return
    close = difflib.get_close_matches(name, model_names(), n=1, cutoff=0.75)
    if not close and not f"_{name}".endswith(("_lora", "_ags")):
        return
    found, generic = f"--model '{name}' is not known", "lora_ags" if name.endswith("_ags") else "lora"
    own, meant = _model_type(load), parse_model_name(close[0]) if close else None
    is_typo = not _is_architecture(stem := name.removesuffix("_ags").removesuffix("_lora"))
    if meant is not None and meant.family.name != stem and _NUMBER.sub("", meant.family.name) == _NUMBER.sub("", stem):
        is_typo = False  # another version, such as gemma9
    if meant is not None and is_typo and (own is None or meant.family is OF_BASE or own in meant.family.model_types):
        raise UserError(found, nearest(name, model_names(), ALL_MODELS))
    if own is not None:
        found += f", and '{load}' is a model of type '{own}'"
    raise UserError(found, f"give --model {generic}, which adapts every architecture; {PAGE} says what a table adds")


def parse_model_name(name: str) -> AdaptedName | None:
    """Split a name such as `lora`, `opt_lora` or `opt_lora_ags`. Returns None for any other name."""
    stem, shortcuts = name.removesuffix("_ags"), name.endswith("_ags")
    if stem in _OF_BASE_NAMES:
        return AdaptedName(OF_BASE, shortcuts)
    family = families().get(stem.removesuffix("_lora")) if stem.endswith("_lora") else None
    return None if family is None else AdaptedName(family, shortcuts)


def _model_type(folder: str | None) -> str | None:
    """The `model_type` that the configuration in a folder states, if there is one that can be read."""
    if folder is None or not os.path.isfile(path := os.path.join(folder, "config.json")):
        return None
    try:
        found = read_json(path, "the configuration", "").get("model_type")
    except UserError:
        return None
    return found if isinstance(found, str) else None


def _is_architecture(name: str) -> bool:
    """Whether transformers has models of this type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return name in CONFIG_MAPPING_NAMES
