"""The bytes that a program holds at each of its allocations, and the operations of its matrix products."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


# torch counts attention on GPUs only. Tensors on a CPU choose another kernel.
_COUNTED = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Live(TorchDispatchMode):
    """Records when the storages of tensors are allocated and freed. It also works on fake tensors, which have no data.

    Memory that an operator frees before it returns is not seen.

    Args:
        known: tensors that exist before, and do not count.

    Attributes:
        flops: floating-point operations of the matrix products until now, two for a multiply-add.
    """

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._keys = WeakIdKeyDictionary({tensor.untyped_storage(): -1 for tensor in known})
        self._next, self.flops = 0, 0
        self._events: list[tuple[int, int]] = []  # (key of a storage, bytes that are added or, if negative, freed)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if count := _COUNTED.get(function._overloadpacket):
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._keys:
            return
        key, size = self._next, storage.nbytes()
        self._next += 1
        self._keys[storage] = key
        self._events.append((key, size))
        weakref.finalize(storage, self._events.append, (key, -size)).atexit = False

    def moment(self) -> int:
        """The present, for `peak`."""
        return len(self._events)

    def keys_of(self, tensors: Iterable[Tensor]) -> set[int]:
        return {self._keys[tensor.untyped_storage()] for tensor in tensors}

    def levels(self, without: Collection[int] = ()) -> list[int]:
        """The bytes at each moment, from moment 0, without the storages of these keys."""
        levels = [0]
        for key, change in self._events:
            levels.append(levels[-1] + (0 if key in without else change))
        return levels
