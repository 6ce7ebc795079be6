"""What the columns of a file or table hold, and the checks that the wanted ones are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from dataset.spec import Wanted
from heterolora.common.errors import UserError, nearest

ONE_LABEL = "give each row one label; several labels a row are multi-label classification: --multi-label"

ColumnKind = Literal["text", "whole numbers", "real numbers", "truth values", "lists", "other"]  # what a column holds
_KINDS: Sequence[tuple[Callable[[pa.DataType], bool], ColumnKind]] = (
    (lambda type: pa.types.is_string(type) or pa.types.is_large_string(type), "text"),
    (lambda type: pa.types.is_integer(type) or (pa.types.is_decimal(type) and type.scale == 0), "whole numbers"),
    (lambda type: pa.types.is_floating(type) or pa.types.is_decimal(type), "real numbers"),
    (pa.types.is_boolean, "truth values"),
    (lambda type: pa.types.is_list(type) or pa.types.is_large_list(type), "lists"),
)


def kinds_of(schema: pa.Schema) -> dict[str, ColumnKind]:
    """Return what each column holds. A column of categories holds what the categories are."""
    types = [type.value_type if pa.types.is_dictionary(type) else type for type in schema.types]
    kinds = (next((kind for fits, kind in _KINDS if fits(type)), "other") for type in types)
    return dict(zip(schema.names, kinds, strict=True))


def fields_of(schema: pa.Schema) -> dict[str, ColumnKind]:
    """Return what each column holds, and each field of the objects in a column, by its path: `review.text`."""
    found = kinds_of(schema)
    for column in schema:
        if pa.types.is_struct(column.type):
            inside = fields_of(pa.schema([*column.type]))
            found |= {f"{column.name}.{name}": kind for name, kind in inside.items()}
    return found


def kind_of_json(value: Any) -> ColumnKind:
    """Return what a value of a JSON file is."""
    names: dict[type, ColumnKind] = {str: "text", bool: "truth values", int: "whole numbers", float: "real numbers"}
    return "lists" if isinstance(value, list) else names.get(type(value), "other")


def check_present(path: Path, wanted: Wanted, present: Sequence[str]) -> None:
    """Raise UserError if a wanted column is not in a file, or is there twice."""
    counts = Counter(present)
    for column in wanted.columns:
        if column not in counts:
            raise UserError(f"'{path}' has no column '{column}'", nearest(column, filter(str.isprintable, counts)))
        if counts[column] > 1:
            raise UserError(f"'{path}' has {counts[column]} columns named '{column}'", "keep one of them")
