"""What counts as a linear layer, and its widths."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear


def is_linear(module: nn.Module) -> bool:
    """Whether it is a linear layer, quantised or not, or Transformers' transposed `Conv1D`.

    A layer of width 0 has no rank. The output projection of `nn.MultiheadAttention` is none: its `forward` is never
    called. Nor is a router of experts that is a subclass of `nn.Linear` and returns a choice.
    """
    if not isinstance(module, nn.Linear):
        return is_transposed(module)
    if isinstance(module, NonDynamicallyQuantizableLinear) or min(module.in_features, module.out_features) == 0:
        return False
    own = type(module).__module__.startswith("transformers.models.") and type(module).forward is not nn.Linear.forward
    return not own or _maps_rows(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether it is Transformers' `Conv1D`, a linear layer with a weight of shape (in, out)."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def widths_of(linear: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear layer, or of an embedding. `Conv1D` has no `in_features`."""
    if isinstance(linear, nn.Embedding):
        return linear.num_embeddings, linear.embedding_dim
    if is_transposed(linear):
        rows, columns = cast(Tensor, linear.weight).shape
        return rows, columns
    known = cast(nn.Linear, linear)
    return known.in_features, known.out_features


@torch.no_grad()
def _maps_rows(linear: nn.Linear) -> bool:
    """Whether a subclass maps (1, in) to (1, out)."""
    weight = linear.weight
    try:
        y = type(linear).forward(linear, torch.zeros(1, linear.in_features, dtype=weight.dtype, device=weight.device))
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    return isinstance(y, Tensor) and y.shape == (1, linear.out_features)
