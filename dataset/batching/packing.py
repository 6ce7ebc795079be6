"""Joins several rows in one sequence, so that a batch needs no padding, and no row sees another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dataset.batching.targets import IGNORE, learned_spans
from heterolora.saliency.problem import Batch


def first_fit(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Return packs of rows of at most `size` tokens, the longest rows first (Johnson et al. 1974).

    A pack is a list of row numbers. A row that is longer than `size` gets a pack of its own.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((number for number, left in enumerate(room) if lengths[row] <= left), None)
        if place is None:
            place = len(packs)
            packs.append([])
            room.append(size)
        packs[place].append(row)
        room[place] -= lengths[row]
    return packs


def pack(rows: Sequence[Mapping[str, Any]], size: int, pad: int) -> Batch:
    """Make a batch of P packs of T ≤ `size` tokens from rows for a causal model.

    Returns `input_ids`, `position_ids`, which restart in every row, and `labels` (P, T), `attention_mask` (P, 1, T, T),
    which is true where a token sees another one of its own row, `weight` (P,), which is 1, and `pieces`: the pack, the
    first token and the number of tokens of each row. A filler row has no labels. The first token of a row is no target,
    because nothing of the row precedes it.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    packs = first_fit(lengths, size)
    shape = len(packs), max(sum(lengths[row] for row in members) for members in packs)
    ids, positions, labels = torch.full(shape, pad), torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORE)
    owner = torch.full(shape, -1)  # the row of each token; padding sees only padding
    pieces = [(0, 0, 0)] * len(rows)
    for number, members in enumerate(packs):
        at = 0
        for row in members:
            own = slice(at, at + lengths[row])
            pieces[row] = (number, at, lengths[row])
            ids[number, own] = torch.tensor(rows[row]["input_ids"])
            positions[number, own] = torch.arange(lengths[row])
            owner[number, own] = row
            for start, end in learned_spans(rows[row]) if rows[row]["weight"] else ():
                learned = slice(at + max(start, 1), at + end)
                labels[number, learned] = ids[number, learned]
            at += lengths[row]
    seen = (owner.unsqueeze(2) == owner.unsqueeze(1)).tril()  # (P, T, T)
    return {
        "input_ids": ids,
        "position_ids": positions,
        "attention_mask": seen.unsqueeze(1),
        "labels": labels,
        "weight": torch.ones(len(packs)),
        "pieces": pieces,
    }
