"""Which tokens of an encoded row the loss is taken on, and the rows of its choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IGNORE = -100  # the label of tokens that the loss skips


def has_targets(row: Mapping[str, Any]) -> bool:
    """Whether it is a causal model's row. Others have a label, or nothing to learn."""
    return "context" in row or "spans" in row


def learned_spans(row: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the (start, end) of the tokens of a causal model's row that the loss is taken on."""
    if "spans" not in row:
        return [(row["context"], row["length"])]
    return list(zip(row["spans"][::2], row["spans"][1::2], strict=True))


def each_choice(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each choice of an encoded row of multiple choice: the same prompt with that choice."""
    prompt, context = row["input_ids"][: row["context"]], row["context"]
    return [
        {"input_ids": prompt + choice, "context": context, "length": context + len(choice)} for choice in row["choices"]
    ]
