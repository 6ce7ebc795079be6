"""The families that can be adapted. Each module of this folder with a `FAMILY` table is one.

To add an architecture, add such a file. Nothing else changes. The tables are read without importing torch or
transformers, so that `--help` can list them.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass

from heterolora.common.errors import UserError, nearest
from heterolora.elements.family import Family


@dataclass(frozen=True)
class AdaptedName:
    """The parts of `--model` for an adapted network: its family, and whether it has shortcuts in addition to LoRA."""

    family: Family
    shortcuts: bool


@functools.cache
def families() -> Mapping[str, Family]:
    """Returns the tables by family name, sorted."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    tables = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {table.name: table for table in sorted(tables, key=lambda table: table.name)}


def names() -> tuple[str, ...]:
    """Returns the family names."""
    return tuple(families())


def model_names() -> tuple[str, ...]:
    """Returns all values of `--model` for adapted networks: `<family>_lora` and `<family>_lora_ags`."""
    return tuple(f"{name}{suffix}" for name in families() for suffix in ("_lora", "_lora_ags"))


def get(name: str) -> Family:
    """Returns the table of that name. Raises UserError with the nearest name if there is none."""
    if name not in families():
        raise UserError(f"the family '{name}' is not known", nearest(name, names()))
    return families()[name]


def for_model_type(model_type: str) -> Family | None:
    """Returns the table that fits a `model_type` of Hugging Face, if there is one."""
    return next((table for table in families().values() if model_type in table.model_types), None)


def parse_model_name(name: str) -> AdaptedName | None:
    """Splits a name such as `opt_lora` or `opt_lora_ags`. Returns None for any other name."""
    stem, _, tail = name.rpartition("_lora")
    if stem not in families() or tail not in ("", "_ags"):
        return None
    return AdaptedName(families()[stem], shortcuts=tail == "_ags")
