"""LoRA beside a linear layer (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

import torch
from torch import nn

from heterolora.low_rank import LowRank


class LoraLinear(nn.Module):
    """`y = base(x) + delta(x)`, or exactly `base(x)` while the element is off.

    The base layer is wrapped, neither copied nor subclassed, so any module that maps (..., in) to (..., out) will do,
    a quantised one included.

    Args:
        base: the library's own linear layer.
        low_rank: the element.
    """

    def __init__(self, base: nn.Module, low_rank: LowRank) -> None:
        super().__init__()
        self.base = base
        self.low_rank = low_rank

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> y (..., out), in the dtype of base(x)."""
        y = self.base(x)
        return self.low_rank(x, onto=y) if self.low_rank.present else y
