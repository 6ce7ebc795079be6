"""Several labels a row (multi-label): a list of names, or names that `;` separates."""

from __future__ import annotations

import ast
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from heterolora.common.errors import UserError, shown

MARK = ";"


def names_in(value: Any) -> tuple[str, ...]:
    """Return the names in a label: those of a list, also as text such as `["a", "b"]`, or those between the marks."""
    items = _items(value)
    return tuple(dict.fromkeys(name for item in items if (name := class_name(item))))


def in_one_text(names: Sequence[str]) -> str:
    """Return a text of which `names_in` returns the names. It is never empty, as that of a missing label is."""
    is_plain = names and not any(MARK in name or name.startswith("[") for name in names)
    return MARK.join(names) if is_plain else json.dumps([*names], ensure_ascii=False)


def are_sets(values: Sequence[Any]) -> bool:
    """Whether the labels of a column are sets: lists, or texts with marks that have a name in common."""
    different: set[str] = set()
    for value in values:
        if is_set(value):
            return True
        if isinstance(value, str):
            different.add(value)
    if not any(MARK in text for text in different):
        return False
    return max(Counter(name for text in different for name in names_in(text)).values(), default=0) > 1


def is_set(value: Any) -> bool:
    """Whether a label cannot be one name, because it is a list."""
    return isinstance(value, list) or (isinstance(value, str) and _as_list(value) is not None)


def class_name(value: Any) -> str:
    """Return the name of a class: a number as it is written, also if a file holds 1 as 1.0; `true` and `false`.

    Raises UserError if the value has no name.
    """
    if value is None or isinstance(value, list | dict):
        raise UserError(f"a list of labels holds {shown(value)}", 'give a list of names, such as ["a", "b"]')
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        found = _as_list(value)
        return value.split(MARK) if found is None else found
    return value if isinstance(value, list) else [value]


def _as_list(text: str) -> list[Any] | None:
    """Return the list that a text is in JSON, or as pandas writes it, in Python. None if it is none."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return None
