"""The data sets by name. Each module in `dataset/entries/` lists its entries in `DATASETS`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from dataset import entries
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest
from options.actions import ALL_DATASETS

#: The options about the columns of own data, in words.
COLUMN_FLAGS = (
    "--text-columns and --label-column (classification), --prompt-column and --response-column (responses), "
    "--prompt-column, --choices-column and --label-column (multiple choice), --messages-column (conversations), or "
    "--text-columns and --task causal_language_modeling (plain text)"
)
OWN_DATA = (
    "or give own data: a file (csv, tsv, jsonl, json, parquet, txt), a folder with one file per split, or a hub name "
    f"such as owner/name, with {COLUMN_FLAGS}"
)


@cache
def specs() -> dict[str, DatasetSpec]:
    """Return all entries by name, in alphabetical order.

    Raises UserError if a module has no `DATASETS`, or if two entries use the same name or alias.
    """
    found: dict[str, DatasetSpec] = {}
    owner: dict[str, str] = {}  # name or alias -> module
    for module in pkgutil.iter_modules(entries.__path__):
        listed = getattr(importlib.import_module(f"{entries.__name__}.{module.name}"), "DATASETS", None)
        if listed is None:
            raise UserError(f"dataset/entries/{module.name}.py lists no DATASETS", "DATASETS = (DatasetSpec(...),)")
        for spec in listed:
            for name in (spec.name, *spec.aliases):
                if name in owner:
                    raise UserError(
                        f"data set name '{name}' is in dataset/entries/{owner[name]}.py and in {module.name}.py",
                        "every name and alias belongs to one entry",
                    )
                owner[name] = module.name
            found[spec.name] = spec
    return dict(sorted(found.items()))


def names() -> tuple[str, ...]:
    """Return the values of `--dataset`, without aliases."""
    return tuple(specs())


def find(name: str) -> DatasetSpec | None:
    """Return the entry with that name or alias. None if there is none: any other `--dataset` is own data."""
    return next((spec for spec in specs().values() if name in (spec.name, *spec.aliases)), None)


def is_known(name: str) -> bool:
    return find(name) is not None


def get(name: str) -> DatasetSpec:
    """Return the entry with that name or alias. Raises UserError if there is none."""
    if (spec := find(name)) is not None:
        return spec
    raise UserError(f"--dataset '{name}' is not known", f"{nearest(name, names(), ALL_DATASETS)}; {OWN_DATA}")
