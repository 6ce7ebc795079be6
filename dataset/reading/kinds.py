"""What the columns of a file hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pyarrow as pa

ColumnKind = Literal["text", "whole numbers", "real numbers", "truth values", "lists", "other"]  # what a column holds
_KINDS: Sequence[tuple[Callable[[pa.DataType], bool], ColumnKind]] = (
    (lambda type: pa.types.is_string(type) or pa.types.is_large_string(type), "text"),
    (lambda type: pa.types.is_integer(type) or (pa.types.is_decimal(type) and type.scale == 0), "whole numbers"),
    (lambda type: pa.types.is_floating(type) or pa.types.is_decimal(type), "real numbers"),
    (pa.types.is_boolean, "truth values"),
    (lambda type: pa.types.is_list(type) or pa.types.is_large_list(type), "lists"),
)


def kinds(schema: pa.Schema) -> dict[str, ColumnKind]:
    """Returns what each column holds. A column of categories holds what the categories are."""
    return {name: _kind(type) for name, type in zip(schema.names, schema.types, strict=True)}


def _kind(type: pa.DataType) -> ColumnKind:
    type = type.value_type if pa.types.is_dictionary(type) else type
    return next((kind for fits, kind in _KINDS if fits(type)), "other")


def kind_of(value: Any) -> ColumnKind:
    """Returns what a value of a JSON file is."""
    names: dict[type, ColumnKind] = {str: "text", bool: "truth values", int: "whole numbers", float: "real numbers"}
    return "lists" if isinstance(value, list) else names.get(type(value), "other")
