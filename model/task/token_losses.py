"""Cross-entropy of target tokens, without the logits of all tokens at once.

The logits (tokens, vocabulary) are the largest tensor of a language model's step: 2,048 tokens of Gemma's 256,000 words
are 2 GB, and their gradient is as large. Here the head and the loss run on a chunk of tokens at a time. The gradient of
a chunk is computed at once, so that its logits can be freed, as in Liger Kernel (Hsu et al. 2024, arXiv:2410.10989).
On a GPU, Liger Kernel itself computes the loss and its gradient if it is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel

from heterolora.common.checks import present
from heterolora.elements.low_rank import LoraLinear

CHUNK_ELEMENTS = 1 << 24  # logits of a chunk: 64 MiB in float32


class Head:
    """The head of a language model: hidden states -> logits, computed for the tokens that a loss needs."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.linear: Any = network.get_output_embeddings()
        self._is_last: bool | None = None  # whether the network's logits are exactly the output of `linear`

    def losses(
        self, inputs: Mapping[str, Tensor], targets: Tensor, kept: Tensor, number: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sum of the losses, and the loss of each kept token (N,), which has no gradient.

        The sum alone if `by_liger`.

        Args:
            inputs: of the network.
            targets: (rows, tokens) the token that follows each position.
            kept: (rows, tokens) the N positions that have a target.
            number: N, if it is known. Otherwise the program waits for the device to count them.
        """
        number = int(kept.sum()) if number is None else number
        at = kept.flatten().nonzero_static(size=number).squeeze(1)  # (N,) places in (rows · tokens)
        targets = targets.flatten()[at]
        if self._is_last is not False and not self._is_watched():
            before = None if self._is_last else _random_states(targets.device)
            with _held(self.linear) as held:
                output = self.network(**inputs).logits  # (rows, 1, vocabulary): of the last token only
            hidden, of_linear = held  # (rows, tokens, width), (rows, 1, vocabulary)
            if self._is_last is None:
                self._is_last = torch.equal(of_linear, output)
            if self._is_last:
                return summed_cross_entropy(hidden.flatten(0, 1).index_select(0, at), targets, self.linear)
            _restore(present(before))  # so that the trial changes nothing, and a resumed run draws the same numbers
        logits = self.network(**inputs).logits.flatten(0, 1).index_select(0, at).float()
        each = F.cross_entropy(logits, targets, reduction="none")
        return each.sum(), each.detach()

    def _is_watched(self) -> bool:
        """Whether a heuristic observes an element on the output layer: then it must see the layer's whole input once,
        and the gradient of the mean loss.
        """
        return isinstance(self.linear, LoraLinear) and self.linear.low_rank.probe is not None


def _random_states(device: torch.device) -> list[Tensor]:
    """The states of torch's generators of the CPU and, if it is one, of a GPU."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _restore(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)


@contextmanager
def _held(linear: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the input of `linear`, and its output. It is applied to the last token only."""
    held: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        held.append(args[0])
        return (args[0][:, -1:],)

    def keep_output(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
        held.append(output)

    hooks = linear.register_forward_pre_hook(keep), linear.register_forward_hook(keep_output)
    try:
        yield held
    finally:
        for hook in hooks:
            hook.remove()


def summed_cross_entropy(hidden: Tensor, targets: Tensor, linear: Any) -> tuple[Tensor, Tensor | None]:
    """Return the sum of the losses of `linear(hidden)`, and the loss of each token (N,), which has no gradient.

    The sum alone if `by_liger`.

    Args:
        hidden: (N, width).
        targets: (N,).
    """
    weights = tuple(weight for weight in linear.parameters() if weight.requires_grad)
    chunk = max(1, CHUNK_ELEMENTS // linear.out_features)
    pieces = _Pieces(linear, targets, chunk)
    if torch.is_grad_enabled() and (hidden.requires_grad or weights):
        if hidden.requires_grad and by_liger(
            hidden.device, len(hidden), linear, importlib.util.find_spec("liger_kernel") is not None
        ):
            from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

            return LigerFusedLinearCrossEntropyLoss(reduction="sum")(linear.weight, hidden, targets, linear.bias), None
        return _Summed.apply(pieces, hidden, *weights)
    each = torch.cat([pieces.losses(i, part) for i, part in enumerate(hidden.split(chunk))])
    return each.sum(), each


def by_liger(device: torch.device, tokens: int, linear: nn.Module, installed: bool) -> bool:
    """Whether Liger Kernel computes a loss with its gradient. Its kernels need a GPU, a plain layer and a token."""
    return installed and device.type == "cuda" and tokens > 0 and type(linear) is nn.Linear


@dataclass(frozen=True)
class _Pieces:
    """What the loss of a chunk needs besides its hidden states."""

    linear: Any
    targets: Tensor
    chunk: int

    def losses(self, index: int, part: Tensor) -> Tensor:
        targets = self.targets[index * self.chunk : (index + 1) * self.chunk]
        return F.cross_entropy(self.linear(part).float(), targets, reduction="none")


class _Summed(torch.autograd.Function):
    """The sum of the losses. Its gradient is computed together with it."""

    @staticmethod
    def forward(ctx: Any, pieces: _Pieces, hidden: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        each, of_hidden = [], []
        of_weights = [torch.zeros_like(weight) for weight in weights]
        for index, part in enumerate(hidden.detach().split(pieces.chunk)):
            with torch.enable_grad():
                losses = pieces.losses(index, part.requires_grad_())
                own, *others = torch.autograd.grad(losses.sum(), (part, *weights))
            each.append(losses.detach())
            of_hidden.append(own)
            torch._foreach_add_(of_weights, others) if others else None
        ctx.save_for_backward(torch.cat(of_hidden), *of_weights)
        every = torch.cat(each)
        ctx.mark_non_differentiable(every)
        return every.sum(), every

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_total: Tensor, _of_each: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(_scaled(gradient, of_total) for gradient in ctx.saved_tensors)


def _scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The product in float32: the factor of a loss scaler can be larger than float16 holds."""
    return (gradient * factor.reshape(1)).to(gradient.dtype)
