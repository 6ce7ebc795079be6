"""The one trainable element of the search space: a low-rank map that can be on or off.

LoRA (Hu et al. 2021, arXiv:2106.09685) puts it beside a linear layer, a shortcut puts it beside a whole half of a
Transformer block. Both are the same map and the same class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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
        if self.training and self.dropout > 0:
            x = F.dropout(x, self.dropout)
        dtype = _autocast_dtype(x.device.type) or self.A.dtype
        factors = (self.A.to(dtype), self.B.to(dtype), self.importance * self.scaling)
        if onto is None or onto.dtype == dtype:
            return _Product.apply(x, onto, *factors)
        return onto + _Product.apply(x, None, *factors).to(onto.dtype).view_as(onto)

    def extra_repr(self) -> str:
        state = "on" if self.enabled else "off"
        return f"in={self.in_features}, out={self.out_features}, rank={self.rank}, alpha={self.alpha:g}, {state}"


class _Product(torch.autograd.Function):
    """`scale · x Aᵀ Bᵀ`, added to `onto` if there is one, and its gradients; cannot be differentiated twice.

    What is r wide is kept r × tokens, so that every product runs along memory: the gradient of B as z G takes a third
    to an eighth of the time of Gᵀ zᵀ, which autograd would choose. x is kept in the narrower of its own dtype and the
    one computed in. Results are filled in rather than reshaped: autograd adds to a gradient in place, and library code
    may change an output in place, only where it is no view.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, onto: torch.Tensor | None, A: torch.Tensor, B: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """x (..., in), onto (..., out), A (r, in) and B (out, r) of one dtype -> like `onto`, or (..., out)."""
        computed = _rows(x).to(A.dtype)  # (tokens, in)
        z = (A @ computed.t()).mul_(scale)  # (r, tokens)
        ctx.save_for_backward(x if x.element_size() <= computed.element_size() else computed, z, A, B)
        ctx.scale, ctx.x_shape = scale, x.shape
        if onto is None:
            y = A.new_empty(*x.shape[:-1], B.shape[0])
            torch.mm(z.t(), B.t(), out=_rows(y))
        else:
            y = onto.new_empty(onto.shape)
            torch.addmm(_rows(onto), z.t(), B.t(), out=_rows(y))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, G: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """G (..., out) -> the gradients of x, onto, A and B."""
        x, z, A, B = ctx.saved_tensors
        for_x, for_onto, for_A, for_B, _ = ctx.needs_input_grad
        of_x = of_A = of_B = None
        if for_B:
            of_B = (z @ _rows(G)).t()
        if for_x or for_A:
            g = (B.t() @ _rows(G).t()).mul_(ctx.scale)  # (r, tokens)
        if for_A:
            of_A = g @ _rows(x).to(A.dtype)
        if for_x:
            of_x = A.new_empty(ctx.x_shape)
            torch.mm(g.t(), A, out=_rows(of_x))  # autograd casts it to x's dtype
        return of_x, G if for_onto else None, of_A, of_B, None


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes matrix products in, where it is active."""
    active = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if active else None


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(..., width) -> (tokens, width)."""
    return tensor.reshape(-1, tensor.shape[-1])
