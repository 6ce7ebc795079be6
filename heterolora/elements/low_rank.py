"""The trainable part of an element: a low-rank map that can be switched on and off.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds it to a linear layer, a shortcut adds it to a half of a Transformer block.
Both use the same class.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.nn import functional as F

from heterolora.elements.element import Element


class Observer(Protocol):
    """Observes a place during a forward pass. It returns what it is given."""

    def __call__(self, x: torch.Tensor, y: torch.Tensor, /) -> torch.Tensor:
        """The input x and the output y -> y."""

    def of_weight(self, weight: torch.Tensor, /) -> torch.Tensor:
        """The weights (experts, out, in) of the experts of a layer -> the same."""


class LowRank(nn.Module):
    """`delta(x) = importance · scaling · B(A(dropout(x)))`, which is zero at the start because B = 0.

    A has shape (r, in) and starts Kaiming-uniform. B has shape (out, r) and starts at zero. Both are float32, whatever
    the dtype of the base. `importance` is 1, except while `alpha_test` measures the network without the element.

    An element with experts has a map for each: A has shape (experts · r, in), and B (out, r · experts), as in PEFT; see
    `by_expert`. `LoraExperts` computes with them.

    An element that is off must not be called: its owner returns exactly what it returns without the element. A and B
    then require no gradient, so that no optimizer changes them. A `probe` observes an element, on or off. While it
    observes an element that is off, the owner does call the element.
    """

    def __init__(self, element: Element) -> None:
        super().__init__()
        self.element = element
        self.scaling = element.settings.scaling
        self.importance = 1.0
        rows = element.rank * element.experts
        self.A = nn.Parameter(torch.empty(rows, element.in_features, dtype=torch.float32))
        self.B = nn.Parameter(torch.zeros(element.out_features, rows, dtype=torch.float32))
        if element.is_embedding:
            nn.init.uniform_(self.A, -1, 1)  # as for one input, because no sum over the tokens is computed
        else:
            nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.enabled = True
        self.probe: Observer | None = None

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        """All that is trained."""
        return self.A, self.B

    @property
    def present(self) -> bool:
        """Whether the owner must call it: it is on, or a probe observes it."""
        return self.enabled or self.probe is not None

    def switch(self, on: bool) -> None:
        """Turn the element on or off. Off: A and B keep their values, lose their gradients and require none."""
        self.enabled = on
        for parameter in self.tensors:
            parameter.requires_grad_(on)
            if not on:
                parameter.grad = None

    @property
    def by_expert(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of A and B: A (experts, r, in) and B (experts, out, r)."""
        experts = self.element.experts
        return self.A.view(experts, -1, self.A.shape[1]), self.B.view(len(self.B), -1, experts).permute(2, 0, 1)

    def matrix(self, dtype: torch.dtype) -> torch.Tensor:
        """scaling · B A in a dtype: (out, in), or (experts, out, in)."""
        A, B = (self.A, self.B) if self.element.experts == 1 else self.by_expert
        return (B.to(dtype) @ A.to(dtype)).mul_(self.scaling)

    def forward(self, x: torch.Tensor, onto: torch.Tensor | None = None) -> torch.Tensor:
        """x (..., in), of any floating dtype -> delta(x) (..., out) in float32, or in autocast's dtype if it is active.

        With `onto`, as many rows of width `out`: a tensor like `onto` that holds `onto + delta(x)`. The sum avoids a
        separate delta(x) if the dtypes allow it.
        """
        y = self._add(x, onto) if self.enabled or onto is None else onto
        return y if self.probe is None else self.probe(x, y)

    def _add(self, x: torch.Tensor, onto: torch.Tensor | None) -> torch.Tensor:
        if self.training and self.element.settings.dropout > 0:
            x = F.dropout(x, self.element.settings.dropout)
        dtype = _autocast_dtype(x.device.type) or self.A.dtype
        factors = (self.A.to(dtype), self.B.to(dtype), self.importance * self.scaling)
        if onto is None or onto.dtype == dtype:
            return _product(x, onto, *factors)
        return onto + _product(x, None, *factors).to(onto.dtype).view_as(onto)

    def extra_repr(self) -> str:
        element, state = self.element, "on" if self.enabled else "off"
        widths = f"in={element.in_features}, out={element.out_features}"
        return f"{element.key}, {widths}, rank={element.rank}, alpha={element.settings.alpha:g}, {state}"


class LoraLinear(nn.Module):
    """`y = base(x) + delta(x)`; exactly `base(x)` while the element is off.

    The base layer is wrapped, neither copied nor subclassed. It can be any module that maps (..., in) to (..., out),
    also a quantised one. `weight`, `bias` and the widths are those of the base, because some networks read them (T5
    reads a dtype).
    """

    def __init__(self, base: nn.Module, low_rank: LowRank) -> None:
        super().__init__()
        self.base = base
        self.low_rank = low_rank

    @property
    def weight(self) -> torch.Tensor:
        return cast(torch.Tensor, self.base.weight)

    @property
    def bias(self) -> torch.Tensor | None:
        return cast("torch.Tensor | None", self.base.bias)

    @property
    def in_features(self) -> int:
        return self.low_rank.element.in_features

    @property
    def out_features(self) -> int:
        return self.low_rank.element.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in) -> y (..., out), in the dtype of base(x)."""
        y: torch.Tensor = self.base(x)
        return self.low_rank(x, onto=y) if self.low_rank.present else y


class _Product(torch.autograd.Function):
    """`scale · x Aᵀ Bᵀ`, added to `onto` if it is given, and its gradients. It cannot be differentiated twice.

    Tensors of width r are kept as (r, tokens), so that every product reads memory in order: the gradient of B computed
    as z G takes a third to an eighth of the time of Gᵀ zᵀ, which autograd computes. x is saved in the narrower of its
    own dtype and the computing dtype. Results are written into new tensors and are never views, because autograd and
    library code change outputs and gradients in place only if they are no views.
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


_product: Callable[..., torch.Tensor] = _Product.apply


def _autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype in which autocast computes matrix products, if autocast is active."""
    active = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
    return torch.get_autocast_dtype(device_type) if active else None


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """(..., width) -> (tokens, width)."""
    return tensor.reshape(-1, tensor.shape[-1])
