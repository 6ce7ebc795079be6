"""One training step on fake tensors, which have a shape and a dtype but no data: what it holds, and what it computes.

What a block keeps for the backward pass depends on its family, the precision, the elements that are on, and on which
weights are frozen: a linear layer without an element does not keep its input. General formulas (Korthikanti et al.
2022, arXiv:2205.05198: about 34 bytes per token and unit of width for a block of GPT whose weights are all trained) say
nothing about that. So the network itself runs, with torch's `FakeTensorMode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from fractions import Fraction
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from heterolora.elements.blocks import base_of
from heterolora.elements.search_space import SearchSpace
from model.load import enable_gradient_checkpointing
from model.task.token_losses import summed_cross_entropy
from tools.planning.live import Live

AUTOCAST = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
_FEW = (4, 6)  # blocks


@dataclass(frozen=True)
class StepCost:
    """A step on one batch. Bytes are besides weights, gradients and the state of the optimizer.

    Attributes:
        activations: peak of the forward and the backward pass, outside the loss.
        kept: of them, what the blocks keep for the backward pass while the loss is computed.
        logits: peak of the loss, besides `kept`.
        flops: floating-point operations of all matrix products.
    """

    activations: int
    kept: int
    logits: int
    flops: int

    def extrapolated(self, other: StepCost, factor: Fraction) -> StepCost:
        """The step at `factor` times the way from this one to `other`."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return StepCost(*(round(here + factor * (there - here)) for here, there in pairs))

    @property
    def peak(self) -> int:
        """The backward pass does not begin before the logits are freed."""
        return max(self.activations, self.kept + self.logits)


@dataclass(frozen=True)
class BatchShape:
    """The rows of a batch have the same length, so that there is no padding."""

    rows: int
    tokens: int  # of a row
    labels: int | None  # classes; None: a language model, where every token is a target


def steps(
    network: PreTrainedModel, space: SearchSpace, batch: BatchShape, precision: str, packed: dict[str, torch.dtype]
) -> tuple[StepCost, StepCost]:
    """The step without and with gradient checkpointing. Turns the tensors of the network into fake tensors.

    Args:
        packed: names of the layers in 4 bits -> the dtype in which they compute.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu").train()
        for name, dtype in packed.items():
            network.set_submodule(name, _Packed(cast(nn.Linear, network.get_submodule(name)), dtype))
        with _AsOnGpu():
            plain = _of_all_blocks(network, space.blocks, batch, precision)
            enable_gradient_checkpointing(network, space, _AsOnGpu)
            return plain, _of_all_blocks(network, space.blocks, batch, precision)


def _of_all_blocks(
    network: PreTrainedModel, blocks: Sequence[nn.Module], batch: BatchShape, precision: str
) -> StepCost:
    """If all blocks are alike, a step is linear in their number. Then networks with few of the blocks run."""
    fewer, more = _FEW
    if len(blocks) <= more or any(_signature(block) != _signature(blocks[1]) for block in blocks[2:]):
        return step_cost(network, batch, precision)
    (path,) = (path for path, module in network.named_modules() if module is blocks[0])
    place = path.rpartition(".")[0]
    every, found = network.get_submodule(place), []
    for number in _FEW:
        network.set_submodule(place, nn.ModuleList(blocks[:number]))
        found.append(step_cost(network, batch, precision))
    network.set_submodule(place, every)
    return found[0].extrapolated(found[1], Fraction(len(blocks) - fewer, more - fewer))


def _signature(block: nn.Module) -> list[tuple[Any, ...]]:
    """Blocks with the same signature keep and compute the same."""
    return [(name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters()]


def step_cost(network: PreTrainedModel, batch: BatchShape, precision: str) -> StepCost:
    """Run a step; the tensors of the network are fake, or real ones on a CPU."""
    dtype = AUTOCAST.get(precision)
    trained = [p for p in network.parameters() if p.requires_grad]
    live = Live((*network.parameters(), *network.buffers()))
    with live:
        with nullcontext() if dtype is None else torch.autocast("cpu", dtype):
            ids = torch.ones(batch.rows, batch.tokens, dtype=torch.int64)
            loss, start = _loss(network, ids, batch.labels, live)
        end = live.moment()
        loss.backward()
    gradients = [p.grad for p in trained if p.grad is not None]
    levels = live.levels(live.keys_of(gradients))
    for parameter in trained:
        parameter.grad = None
    kept = levels[start]
    outside = max(*levels[: start + 1], *levels[end:])
    return StepCost(outside, kept, max(levels[start : end + 1]) - kept, live.flops)


def _loss(network: PreTrainedModel, ids: Tensor, labels: int | None, live: Live) -> tuple[Tensor, int]:
    """The loss of a batch as `model/task` computes it, and the moment before the head."""
    if labels is not None:
        logits = network(input_ids=ids).logits.float()
        start = live.moment()
        if labels == 1:
            return F.mse_loss(logits.squeeze(-1), torch.zeros(len(ids)), reduction="sum"), start
        return F.cross_entropy(logits, torch.zeros(len(ids), dtype=torch.int64), reduction="sum"), start
    hidden = base_of(network)(input_ids=ids).last_hidden_state  # (rows, tokens, width)
    start = live.moment()
    rows, places = torch.ones_like(ids[:, 1:]).nonzero_static(size=ids[:, 1:].numel()).unbind(1)
    targets = ids[rows, places]
    return summed_cross_entropy(hidden[rows, places], targets, network.get_output_embeddings())[0], start


class _AsOnGpu(TorchFunctionMode):
    """Dropout as on a GPU: it keeps a byte for each element, and attention keeps nothing for it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is F.dropout:
            x, p, training = _dropout_arguments(*args, **kwargs)
            return torch.native_dropout(x, p, True)[0] if training and p > 0 else x
        if function is F.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
        return function(*args, **kwargs)


def _dropout_arguments(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple:
    return input, p, training


class _Packed(nn.Module):
    """Computes and allocates as bitsandbytes' `Linear4bit` does: it unpacks the weight in each pass."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape, self.dtype, self.bias = linear.weight.shape, dtype, linear.bias
        self.packed = nn.Parameter(torch.empty(-(-linear.weight.numel() // 2), 1, dtype=torch.uint8), False)

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return _Unpacked.apply(x.to(self.dtype), self.packed, self.shape, bias).to(x.dtype)


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: torch.Size, bias: Tensor | None) -> Tensor:
        ctx.shape = shape
        return F.linear(x, x.new_empty(shape), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return gradient @ gradient.new_empty(ctx.shape), None, None, None
