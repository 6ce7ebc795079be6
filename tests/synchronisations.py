"""Counts operations that would make a program wait for its GPU, in a run on a CPU.

A GPU works through a queue. A program that needs a value from it (`item`, `tolist`, `bool`), or the size of a tensor
that depends on values (`nonzero`, an index with a mask), waits until the queue is empty.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten
_WAIT = {_aten._local_scalar_dense, _aten.nonzero, _aten.masked_select, _aten.equal, _aten.bincount, _aten._unique2}
_MASKED = {_aten.index, _aten.index_put, _aten.index_put_}
# The step counters of an optimizer and the seeds of a loader stay on the CPU.
_ON_CPU = ("torch/optim/", "torch/utils/data/", "torch/amp/")


class _Operators(TorchDispatchMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = function._overloadpacket
        masked = packet in _MASKED and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for x in tree_leaves(args[1])
        )
        if packet in _WAIT or masked:
            _note(self.found)
        return function(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """Methods that copy to the CPU are no operators of a tensor that is there already."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.tolist, Tensor.cpu, Tensor.numpy):
            _note(self.found)
        return function(*args, **(kwargs or {}))


def _note(found: Counter[str]) -> None:
    """Count the place in the program, or in a library if the program is not on the stack."""
    frame, files = sys._getframe(2), []
    while frame is not None:
        files.append((frame.f_code.co_filename, frame.f_code.co_name))
        frame = frame.f_back
    if any(part in file for file, _ in files[:8] for part in _ON_CPU):
        return
    file, name = next(((f, n) for f, n in files if "/torch/" not in f and "synchronisations" not in f), files[0])
    found["/".join(file.split("/")[-2:]) + f":{name}"] += 1


class PerBatch(pl.Callback):
    """A context of a run, and the first of its callbacks. `batches`: place → number, for each batch after the first."""

    def __init__(self) -> None:
        self.batches: list[Counter[str]] = []
        self._found: Counter[str] = Counter()
        self._started = False
        self._stack = ExitStack()

    def __enter__(self) -> PerBatch:
        self._stack.enter_context(_Operators(self._found))
        self._stack.enter_context(_Methods(self._found))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def on_train_batch_end(self, *_: object) -> None:
        if self._started:
            self.batches.append(self._found.copy())
        self._started = True
        self._found.clear()
