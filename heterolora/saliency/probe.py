"""Watches see the input of an element and the gradient of its output. A probe is one for an element that is off."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heterolora.elements.low_rank import LowRank


class Watch(ABC):
    """Sees x, the input of an element, and G, the gradient of its output, in every backward pass. It changes neither.

    Attributes:
        anchor: any tensor that requires a gradient (it gets none). It makes autograd run the backward pass also below
            the lowest element that is on.
    """

    anchor: Tensor

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x (..., in), y (..., out) with as many rows -> y."""
        return _watched(y, x.detach(), self.anchor, self) if torch.is_grad_enabled() else y

    def of_weight(self, weight: Tensor) -> Tensor:
        """The weights (experts, out, in) of the experts of a layer -> the same."""
        return _watched_weight(weight, self.anchor, self) if torch.is_grad_enabled() else weight

    @abstractmethod
    def add(self, x: Tensor, G: Tensor) -> None:
        """One backward pass: x (tokens, in), the gradient G (tokens, out), of any floating dtype."""

    @abstractmethod
    def add_weight(self, G: Tensor) -> None:
        """One backward pass: the gradient G (experts, out, in) of weights, of any floating dtype."""


class Probe(Watch):
    """Replaces an element that is off, and sums the gradients that it would have if it were on.

    With y the tensor that delta(x) would be added to and G = ∂ℓ/∂y, summed over tokens::

        ∂ℓ/∂A = s · Bᵀ Gᵀ x        (∂ℓ/∂B)ᵀ = s · A xᵀ G

    y and, in the backward pass, G are passed on unchanged, so training is not affected. x is taken before dropout. The
    weights of the element must not change while it is probed. Of experts, Gᵀ x is the gradient of the weight of each.

    Args:
        low_rank: the element.
        of_A: the tensor that ∂ℓ/∂A (r, in) is added to in every backward pass, float32.
        of_Bt: the same for (∂ℓ/∂B)ᵀ (r, out).
        anchor: see `Watch`.
        trained: whether B ≠ 0. While B = 0, ∂ℓ/∂A is zero and is not computed.
    """

    def __init__(self, low_rank: LowRank, of_A: Tensor, of_Bt: Tensor, anchor: Tensor, trained: bool) -> None:
        self.of_A, self.of_Bt, self.anchor, self.scaling = of_A, of_Bt, anchor, low_rank.scaling
        self.A = low_rank.A.detach()  # (r, in)
        # All tensors are r × wide. Products in the other layout take three times as long.
        self.Bt = low_rank.B.detach().t().contiguous() if trained else None  # (r, out)
        self.experts = low_rank.element.experts

    def add(self, x: Tensor, G: Tensor) -> None:
        if not x.is_floating_point():
            return self._add_of_ids(x.squeeze(-1), G.to(self.A.dtype))
        x, G = x.to(self.A.dtype), G.to(self.A.dtype)
        self.of_Bt.add_(self.A @ x.t() @ G, alpha=self.scaling)
        if self.Bt is not None:
            self.of_A.add_(self.Bt @ G.t() @ x, alpha=self.scaling)

    def _add_of_ids(self, ids: Tensor, G: Tensor) -> None:
        """The same with the one-hot rows of the tokens of an embedding."""
        self.of_Bt.add_(self.A[:, ids] @ G, alpha=self.scaling)
        if self.Bt is not None:
            self.of_A.index_add_(1, ids, self.Bt @ G.t(), alpha=self.scaling)

    def add_weight(self, G: Tensor) -> None:
        G, experts = G.to(self.A.dtype), self.experts
        A = self.A.view(experts, -1, self.A.shape[1])  # (experts, r, in)
        of_Bt = self.of_Bt.view(-1, experts, self.of_Bt.shape[1]).transpose(0, 1)  # (experts, r, out)
        of_Bt.add_(A @ G.mT, alpha=self.scaling)
        if self.Bt is not None:
            Bt = self.Bt.view(-1, experts, self.Bt.shape[1]).transpose(0, 1)  # (experts, r, out)
            self.of_A.view_as(A).add_(Bt @ G, alpha=self.scaling)


class _Watched(torch.autograd.Function):
    """The identity on y; its backward pass gives x and the gradient of y to a watch.

    x is saved with `save_for_backward`, so that activation checkpointing drops and recomputes it. The result has y's
    storage and is no view of y, because autograd refuses to change a view from here in place (`nn.ReLU(inplace=True)`).
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, anchor: Tensor, watch: Watch) -> Tensor:
        ctx.save_for_backward(x)
        ctx.watch = watch
        return y.new_empty(0).set_(y)  # type: ignore[call-overload, no-any-return]  # torch's stub has no form with a tensor

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.watch.add(x.reshape(-1, x.shape[-1]), G.reshape(-1, G.shape[-1]))
        return G, None, None, None


_watched: Callable[..., Tensor] = _Watched.apply


class _WatchedWeight(torch.autograd.Function):
    """The identity on the weights of experts; its backward pass gives their gradient to a watch."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, anchor: Tensor, watch: Watch) -> Tensor:
        ctx.watch = watch
        return weight.view_as(weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, None, None]:
        ctx.watch.add_weight(G)
        return G, None, None


_watched_weight: Callable[..., Tensor] = _WatchedWeight.apply
