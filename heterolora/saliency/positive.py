"""A network made linear and positive, for synflow: what flows through it is a sum over paths of products of weights.

It is computed from the family's table, not by the library's modules: all weights by absolute value, in float64 and out
of place, a block at a time; biases 0; a norm multiplies by |weight| and does no more; activations are the identity.
What is no linear map in the original is made one in the way that keeps every path positive:

- attention is uniform over the visible positions, so that q and k are on no path;
- a gated feed-forward half, w2(act(gate(x)) · w1(x)), adds its two branches. A product would double the degree in x
  with every block, to no finite number after ten;
- what is added to the input embeddings (positions, token types) is the same for every input, like a bias, and 0.

The input embeddings are all ones, so every position holds the same, and an average over positions, whichever are
visible, leaves it as it is. One position therefore stands for all of the row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heterolora.errors import UserError
from heterolora.lora import LoraLinear
from heterolora.search_space import SearchSpace

TOKENS = 64  # of the row that flows through


@dataclass(frozen=True)
class Factors:
    """|A| (r, in) and |B| (out, r) of an element, float64 leaves of the graph, and its scaling."""

    A: Tensor
    B: Tensor
    scaling: float

    def delta(self, x: Tensor) -> Tensor:
        """x (in,) → (out,)."""
        return self.scaling * (self.B @ (self.A @ x))


class PositiveNetwork:
    """The positive linear network of an adapted one, which is read and never written to.

    Args:
        network: the adapted network.
        space: its search space; elements that are off are left out.

    Attributes:
        elements: (block, name) → factors, in the order of the search space.

    Raises:
        UserError: a weight of the base can't be read, as in a quantised one.
    """

    def __init__(self, network: nn.Module, space: SearchSpace) -> None:
        self.family, self.space = space.family, space
        self.width = network.get_input_embeddings().embedding_dim
        self.heads = network.config.num_attention_heads
        self.modules = dict(network.base_model.named_modules())
        # MPS has no float64
        self.device = torch.device("cpu") if network.device.type == "mps" else network.device
        self.elements = {
            (element.layer, element.name): Factors(
                self._positive(element.low_rank.A).requires_grad_(),
                self._positive(element.low_rank.B).requires_grad_(),
                element.low_rank.scaling,
            )
            for element in space
            if element.low_rank.enabled
        }
        self.power = 0

    def flow(self) -> Tensor:
        """R / 2^`power`: rescaled after every block, exactly, it stays finite however many there are."""
        self.power = 0
        x = self._through(self.family.before_blocks, torch.ones(self.width, dtype=torch.float64, device=self.device))
        h = None
        for layer in range(len(self.space.blocks)):
            # Absolute values are made again for the backward pass instead of kept: they are twice the network.
            x, h = checkpoint(self._block, layer, x, h, use_reentrant=False)
            power = math.frexp(float(x.detach().max()))[1]
            x, h, self.power = x * 2.0**-power, h * 2.0**-power, self.power + power
        return TOKENS * self._through(self.family.after_blocks, x).sum()

    def unscaled(self, values: Sequence[float]) -> list[float]:
        """`values` · 2^`power`, or, where floats end before that, · a lower power of two that leaves room for sums."""
        highest = math.frexp(max(values, default=0.0))[1]
        power = min(self.power, 1000 - highest)
        return [math.ldexp(value, power) for value in values]

    def _block(self, layer: int, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Block input x (width,), h of the block before → block output y, own h; see `heterolora.shortcut`."""
        block = self.space.blocks[layer]
        shortcuts = getattr(block, "shortcuts", None)
        again = shortcuts is not None and shortcuts.renormalize

        def delta(name: str, source: Tensor) -> Tensor | float:
            factors = self.elements.get((layer, name))
            return 0.0 if factors is None else factors.delta(source)

        def linear(name: str, source: Tensor) -> Tensor:
            return self._linear(block.get_submodule(self.family.linears[name]), source) + delta(name, source)

        def norm1(source: Tensor) -> Tensor:
            return self._norm(block.get_submodule(self.family.norm1), source)

        def norm2(source: Tensor) -> Tensor:
            return self._norm(block.get_submodule(self.family.norm2), source)

        def attention(source: Tensor) -> Tensor:
            values = linear("v_proj", source)
            wanted = _base(block.get_submodule(self.family.linears["o_proj"])).in_features
            of_head = values.view(-1, wanted // self.heads)  # (key-value heads, width of a head)
            return linear("o_proj", of_head.repeat_interleave(wanted // values.numel(), dim=0).flatten())

        def feed_forward(source: Tensor) -> Tensor:
            inner = linear("w1", source)
            return linear("w2", inner + linear("gate", source) if "gate" in self.family.linears else inner)

        crossing = 0.0 if before is None else delta("shortcut2", before)
        if self.space.pre_norm:
            h = x + delta("residual1", x) + attention(norm1(x)) + crossing
            if again and layer > 0:
                h = norm1(h)
            y = h + delta("residual2", h) + feed_forward(norm2(h)) + delta("shortcut1", x)
            return (norm2(y) if again else y), h
        h = x + delta("residual1", x) + attention(x)
        h = norm1(norm1(h) + crossing) if again and layer > 0 else norm1(h + crossing)
        y = h + delta("residual2", h) + feed_forward(h)
        return (norm2(norm2(y) + delta("shortcut1", x)) if again else norm2(y + delta("shortcut1", x))), h

    def _through(self, paths: Sequence[str], x: Tensor) -> Tensor:
        """x through those of the linear layers and norms that the model has."""
        for module in (self.modules[path] for path in paths if path in self.modules):
            x = self._linear(module, x) if isinstance(module, nn.Linear) else self._norm(module, x)
        return x

    def _linear(self, module: nn.Module, x: Tensor) -> Tensor:
        base = _base(module)
        weight = base.weight
        if not weight.is_floating_point() or weight.shape != (base.out_features, base.in_features):
            raise UserError(
                "synflow needs the weights of the base, which a quantised one does not tell",
                "leave out --quantize, or use another --importance-test-name",
            )
        return self._positive(weight) @ x

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        if module.weight is None:
            return x
        return self._positive(self.family.norm_offset + module.weight) * x

    def _positive(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.device, torch.float64).abs()


def _base(module: nn.Module) -> nn.Module:
    """The library's own linear layer."""
    return module.base if isinstance(module, LoraLinear) else module
