"""A linear layer whose weight has not the usual shape or type: a stand-in for a quantised one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from heterolora.elements.adapt import HEADS


class PackedLinear(nn.Module):
    """Two 4-bit weights to a byte, a float16 scale a row; `in_features` and `out_features` say what it maps.

    It refuses to be cast: a real one would lose what it holds.
    """

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        scale = (plain.weight.detach().abs().amax(1, keepdim=True) / 7).half()  # (out, 1)
        levels = (plain.weight.detach() / scale.float()).round().clamp(-8, 7).to(torch.int16) + 8
        self.packed = nn.Parameter((levels[:, ::2] * 16 + levels[:, 1::2]).to(torch.uint8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = plain.bias

    def dequantized(self) -> torch.Tensor:
        """(out, in), float32."""
        levels = torch.stack([self.packed >> 4, self.packed & 15], dim=-1).flatten(1)
        return (levels.float() - 8) * self.scale.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.dequantized().to(x.dtype), self.bias)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        if fn(self.scale).dtype != self.scale.dtype:
            raise ValueError("a quantised layer can't be cast")
        return super()._apply(fn, recurse)


def replace_linears(network: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Every linear layer of the base by what `make` makes of it; heads stay."""
    for path, module in list(network.named_modules()):
        if isinstance(module, nn.Linear) and path.split(".")[0] not in (*HEADS, "lm_head"):
            network.set_submodule(path, make(module))


def pack(network: nn.Module) -> None:
    replace_linears(network, PackedLinear)


def round_to_packed(network: nn.Module) -> None:
    """Plain linear layers with the very weights that `pack` leaves: what a packed network must compute."""

    def rounded(plain: nn.Linear) -> nn.Linear:
        weight = PackedLinear(plain).dequantized()
        with torch.no_grad():
            plain.weight.copy_(weight)
        return plain

    replace_linears(network, rounded)
