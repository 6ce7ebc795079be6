"""`--compile`: the blocks of a network run as compiled functions in training, by `torch.compile`.

Each block is compiled for itself and in place, so that the names of parameters and the hooks of shortcuts stay as they
are. Switching an element changes what its block computes, so a block is compiled once for each pattern of elements that
are on. Evaluation, generation and the scoring of `--lora-init` run uncompiled: their modes, caches and probes would
need versions of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

# The length of a batch is a variable, so that one version serves all lengths. Dropout draws the same random numbers as
# without compiling. Each block has its own versions, and runs uncompiled if it would need more.
HOW: dict[str, Any] = {"dynamic": True, "isolate_recompiles": True, "recompile_limit": 64}
BACKEND: dict[str, Any] = {"backend": "inductor", "options": {"fallback_random": True}}


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block when it runs for the first time."""
    # The h of the block before, which a shortcut takes from `Carry`, has as many rows as the batch has tokens.
    torch._dynamo.config.force_nn_module_property_static_shapes = False
    for block in blocks:
        block.compile(**HOW, **BACKEND)


def uncompiled() -> AbstractContextManager[None]:
    """A context in which compiled blocks run as they would without it."""
    return torch.compiler.set_stance("force_eager")
