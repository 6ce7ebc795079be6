"""The one trainable element of the search space: a low-rank map that can be on or off.

LoRA (Hu et al. 2021, arXiv:2106.09685) puts it beside a linear layer, a shortcut puts it beside a whole half of a
Transformer block. Both are the same map and the same class.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F


class LowRank(nn.Module):
    """`delta(x) = importance · scaling · B(A(dropout(x)))`, zero at the start because B = 0.

    A has shape (rank, in) and starts Kaiming-uniform, B has shape (out, rank) and starts at zero; both are float32
    whatever the base computes in. `importance` is 1 except while `alpha_test` asks what happens without the element.

    Off means absent: whoever owns the element must not call it while `enabled` is False, and A and B then ask for no
    gradient, so that no optimizer (weight decay and momentum included) touches them. While a `probe` stands in for an
    element that is off, its owner calls it nevertheless: `probe(x, onto)` gives back `onto` as it is and looks on.

    Args:
        in_features: width of x.
        out_features: width of delta(x).
        rank: r, at least 1.
        alpha: scaling is alpha / rank, or alpha / sqrt(rank) with `use_rslora` (Kalajdzievski 2023, arXiv:2312.03732).
        dropout: probability in [0, 1) with which entries of x are dropped in training.
        use_rslora: the rank-stabilised scaling.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_rslora: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.alpha, self.dropout, self.use_rslora = float(alpha), float(dropout), use_rslora
        self.scaling = self.alpha / (math.sqrt(rank) if use_rslora else rank)
        self.importance = 1.0
        self.A = nn.Parameter(torch.empty(rank, in_features, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros(out_features, rank, dtype=torch.float32))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.enabled = True
        self.probe: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None

    @property
    def present(self) -> bool:
        """Whether the owner must call it: it is on, or a probe stands in for it."""
        return self.enabled or self.probe is not None

    def switch(self, on: bool) -> None:
        """Turn the element on or off. Off: A and B lose their gradient, and keep their values for when it returns."""
        self.enabled = on
        for parameter in (self.A, self.B):
            parameter.requires_grad_(on)
            if not on:
                parameter.grad = None

    def forward(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """delta(x), or `onto + delta(x)` without building delta(x) where the dtypes allow.

        Args:
            x: (..., in), of any floating dtype.
            onto: what delta(x) is added to, with as many rows of width `out` as x has of width `in`.

        Returns:
            delta(x) (..., out) in float32 (autocast's dtype where that is active), or a tensor like `onto`.
        """
        if not self.enabled and self.probe is not None:
            return self.probe(x, onto)
        if x.dtype != self.A.dtype and not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)
        if self.training and self.dropout > 0:
            x = F.dropout(x, self.dropout)
        z = F.linear(x, self.A)  # (..., rank)
        scale = self.importance * self.scaling
        if onto is None:
            return F.linear(z * scale, self.B)  # scaled where it is narrow
        if z.dtype == onto.dtype:
            # One matrix product that scales and adds: delta(x) would be as large as `onto`.
            return torch.addmm(onto.flatten(0, -2), z.flatten(0, -2), self.B.t(), alpha=scale).view_as(onto)
        return onto + F.linear(z * scale, self.B).to(onto.dtype).view_as(onto)

    def extra_repr(self) -> str:
        state = "on" if self.enabled else "off"
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, alpha={self.alpha:g}, {state}"
