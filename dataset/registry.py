"""Every data set by name: whatever the modules in `dataset/entries/` list in their `DATASETS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dataset import entries
from dataset.spec import DatasetSpec
from heterolora.errors import UserError, nearest


@cache
def specs() -> dict[str, DatasetSpec]:
    """All entries, by name, in alphabetical order.

    Raises:
        UserError: a module without `DATASETS`, or a name or alias that two entries claim.
    """
    found: dict[str, DatasetSpec] = {}
    claimed: dict[str, str] = {}  # name or alias -> the module that has it
    for module in pkgutil.iter_modules(entries.__path__):
        listed = getattr(importlib.import_module(f"{entries.__name__}.{module.name}"), "DATASETS", None)
        if listed is None:
            raise UserError(f"dataset/entries/{module.name}.py lists no DATASETS", "DATASETS = (DatasetSpec(...),)")
        for spec in listed:
            for name in (spec.name, *spec.aliases):
                if name in claimed:
                    raise UserError(
                        f"data set name '{name}' is in dataset/entries/{claimed[name]}.py and in {module.name}.py",
                        "every name and alias belongs to one entry",
                    )
                claimed[name] = module.name
            found[spec.name] = spec
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """What `--dataset` takes, without the aliases."""
    return tuple(specs())


def get(name: str) -> DatasetSpec:
    """The entry of that name or alias.

    Raises:
        UserError: there is none.
    """
    for spec in specs().values():
        if name == spec.name or name in spec.aliases:
            return spec
    raise UserError(f"--dataset '{name}' is not known", nearest(name, names()))
