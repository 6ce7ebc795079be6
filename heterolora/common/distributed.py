"""Sums and lists over processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import distributed

from heterolora.common.errors import UserError


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def this_rank() -> int:
    return distributed.get_rank() if world_size() > 1 else 0


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of `values` over all processes; `values` itself if there is one process."""
    if world_size() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def sum_each_over_ranks(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The sum of each tensor over all processes, in one collective; the tensors themselves if there is one process."""
    if world_size() == 1:
        return list(tensors)
    flat = sum_over_ranks(torch.cat([tensor.reshape(-1) for tensor in tensors]))
    pieces = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def sum_numbers_over_ranks(numbers: Sequence[float], device: torch.device) -> list[float]:
    """The sum of each number over all processes, in float64; `device` is the device of the collective."""
    if world_size() == 1:
        return list(numbers)
    return sum_over_ranks(torch.tensor(numbers, dtype=torch.float64, device=device)).tolist()


def gathered(weight: torch.Tensor) -> torch.Tensor:
    """A weight of the base. Every process gathers it if it is sharded (FSDP2), so every process must call this."""
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


def own_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a sharded tensor that this process holds; the tensor itself if it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def gather_lists(mine: list[Any]) -> list[Any]:
    """The elements of the lists of all processes, in the order of the processes."""
    if world_size() == 1:
        return mine
    shares: list[Any] = [None] * world_size()
    distributed.all_gather_object(shares, mine)
    return [item for share in shares for item in share]


ONE_KIND = "run all of them on machines of one kind, with the same versions"


def check_agreement(values: Mapping[str, Any], when: str = "", expected: str = ONE_KIND) -> None:
    """Raise UserError on every process unless all of them have the same value of each name.

    Args:
        values: name -> value of this process. Names and values are pickled.
        when: the end of the message, such as ` at reallocation 3`.
        expected: what would be right.
    """
    first, *others = gather_lists([dict(values)])
    for name in dict.fromkeys(name for each in (first, *others) for name in each):
        if any(other.get(name) != first.get(name) for other in others):
            raise UserError(f"the processes disagree about {name}{when}", expected)
