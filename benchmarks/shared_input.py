"""Places that read one input, q, k and v: each with products of its own, against one product with their stacked A.

A step is the forward and backward pass of the three layers, whose base is frozen. With `shared`, the first place
computes A x for all of them, and autograd runs its backward pass once. `one node` is a single autograd function for the
three places, which no network calls at once. Both must give the numbers of `apart`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from actions.run.console import say
from benchmarks import measure
from heterolora.elements.element import Element, Settings
from heterolora.elements.low_rank import LoraLinear, LowRank

FROZEN, APART, SHARED, ONE = "frozen base", "apart", "shared", "one node"
PLACES = ("q_proj", "k_proj", "v_proj")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=31)


def run(args: argparse.Namespace) -> None:
    say(
        measure.heading(
            args, f"LoRA on three layers of {args.hidden_size} that read {args.rows} × {args.tokens} tokens"
        )
    )
    torch.manual_seed(0)
    x = torch.randn(args.rows, args.tokens, args.hidden_size, device=args.device, requires_grad=True)
    layers = [_layer(name, args).to(args.device) for name in PLACES]
    ways = {
        FROZEN: lambda: [layer.base(x) for layer in layers],
        APART: lambda: [layer(x) for layer in layers],
        SHARED: lambda: shared(x, layers),
        ONE: lambda: one_node(x, layers),
    }
    _check_same(x, layers, ways)
    gradients = [torch.randn_like(x) for _ in layers]
    steps = {name: partial(_step, way, gradients) for name, way in ways.items()}
    say(measure.by_turns(steps, args.rounds, args.device).table(FROZEN, "q, k and v"))


def _layer(name: str, args: argparse.Namespace) -> LoraLinear:
    width = args.hidden_size
    low_rank = LowRank(Element(0, name, "lora", name, width, width, Settings(args.rank, 2.0 * args.rank)))
    low_rank.B.data.normal_(std=0.01)
    return LoraLinear(nn.Linear(width, width).requires_grad_(False), low_rank)


def _step(way: Callable[[], Sequence[Tensor]], gradients: Sequence[Tensor]) -> None:
    torch.autograd.backward(way(), gradients)


def _check_same(x: Tensor, layers: Sequence[LoraLinear], ways: Mapping[str, Callable[[], Sequence[Tensor]]]) -> None:
    found = []
    for name in (APART, SHARED, ONE):
        x.grad = None
        outputs = ways[name]()
        torch.stack([(y * y).sum() for y in outputs]).sum().backward()
        factors = [factor.grad for layer in layers for factor in (layer.low_rank.A, layer.low_rank.B)]
        found.append([*(y.detach() for y in outputs), x.grad, *factors])
        for layer in layers:
            layer.zero_grad()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def shared(x: Tensor, layers: Sequence[LoraLinear]) -> list[Tensor]:
    parts = [layer.low_rank for layer in layers]
    inner = _Down.apply(x, parts[0].scaling, *(part.A for part in parts))
    return [_Up.apply(layer.base(x), z, layer.low_rank.B) for layer, z in zip(layers, inner, strict=True)]


def one_node(x: Tensor, layers: Sequence[LoraLinear]) -> tuple[Tensor, ...]:
    parts = [layer.low_rank for layer in layers]
    outputs = [layer.base(x) for layer in layers]
    return _Three.apply(x, parts[0].scaling, *outputs, *(part.A for part in parts), *(part.B for part in parts))


class _Down(Function):
    """scale · A xᵀ of each A (r, in): (r, tokens)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *factors: Tensor) -> tuple[Tensor, ...]:
        stacked = torch.cat(factors)
        ctx.save_for_backward(x, stacked)
        ctx.scale, ctx.ranks = scale, [len(factor) for factor in factors]
        return (stacked @ _rows(x).t()).mul_(scale).split(ctx.ranks)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, stacked = ctx.saved_tensors
        g = torch.cat(gradients).mul_(ctx.scale)
        return (g.t() @ stacked).view_as(x), None, *(g @ _rows(x)).split(ctx.ranks)


class _Up(Function):
    """onto (..., out) + zᵀ Bᵀ."""

    @staticmethod
    def forward(ctx: Any, onto: Tensor, z: Tensor, B: Tensor) -> Tensor:
        ctx.save_for_backward(z, B)
        return torch.addmm(_rows(onto), z.t(), B.t()).view_as(onto)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, B = ctx.saved_tensors
        return G, B.t() @ _rows(G).t(), (z @ _rows(G)).t()


class _Three(Function):
    """All places at once. The gradients of their inputs are one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *given: Tensor) -> tuple[Tensor, ...]:
        count = len(given) // 3
        outputs, stacked, Bs = given[:count], torch.cat(given[count : 2 * count]), given[2 * count :]
        z = (stacked @ _rows(x).t()).mul_(scale)
        ranks = [B.shape[1] for B in Bs]
        ctx.save_for_backward(x, stacked, z, *Bs)
        ctx.scale, ctx.ranks = scale, ranks
        pairs = zip(outputs, z.split(ranks), Bs, strict=True)
        return tuple(torch.addmm(_rows(onto), part.t(), B.t()).view_as(onto) for onto, part, B in pairs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, stacked, z, *Bs = ctx.saved_tensors
        flat = [_rows(G) for G in gradients]
        g = torch.cat([B.t() @ G.t() for B, G in zip(Bs, flat, strict=True)]).mul_(ctx.scale)
        of_Bs = [(part @ G).t() for part, G in zip(z.split(ctx.ranks), flat, strict=True)]
        return (g.t() @ stacked).view_as(x), None, *gradients, *(g @ _rows(x)).split(ctx.ranks), *of_Bs


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])
