"""The positive linear network of an adapted network, for synflow. Its output is a sum over paths of weight products.

It is computed from the family's table, not by the library's modules. All weights are replaced by their absolute values,
in float64 and out of place, one block at a time. Biases are 0, a norm only multiplies by |weight|, and activations are
the identity. The nonlinear parts of the original become linear maps that keep every path positive:

- attention is uniform over the visible positions, so no path leads through q and k;
- a gated feed-forward half, w2(act(gate(x)) · w1(x)), adds its two branches. A product would double the degree in x
  with every block and would overflow after ten blocks;
- terms that are added to the input embeddings (positions, token types) do not depend on the input and are 0.

The input embeddings are all ones, so all positions hold the same values, and an average over visible positions does
not change them. One position therefore represents the whole row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from heterolora.common.distributed import gathered
from heterolora.common.errors import UserError
from heterolora.elements.blocks import base_of
from heterolora.elements.linear import is_linear, widths_of
from heterolora.elements.low_rank import LoraLinear
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.base_weight import base_weight

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS = 64  # length of the row


@dataclass(frozen=True)
class Factors:
    """|A| (r, in) and |B| (out, r) of an element, float64 leaves of the graph, and its scaling."""

    A: Tensor
    B: Tensor
    scaling: float

    def delta(self, x: Tensor) -> Tensor:
        """x (in,) -> (out,)."""
        return self.scaling * (self.B @ (self.A @ x))


class PositiveNetwork:
    """The positive linear network of an adapted network, which is only read. Elements that are off are skipped.

    Raises:
        UserError: the network has no family table, or a weight of the base cannot be read because it is quantised.
    """

    def __init__(self, network: PreTrainedModel, space: SearchSpace) -> None:
        if space.family is None or not space.family.has_paths:
            raise UserError("synflow needs a family table", "give family=, or use another heuristic such as grad_norm")
        self.family, self.space = space.family, space
        self.width = cast(nn.Embedding, network.get_input_embeddings()).embedding_dim
        self.heads = network.config.num_attention_heads
        self.modules = dict(base_of(network).named_modules())
        self.device = torch.device("cpu") if space.device.type == "mps" else space.device  # MPS has no float64
        self.factors: dict[tuple[int, str], Factors] = {}  # by (block, name), in the order of the search space
        for low_rank in space.on():
            A, B = (self._positive(factor).requires_grad_() for factor in (low_rank.A, low_rank.B))
            self.factors[low_rank.element.layer, low_rank.element.name] = Factors(A, B, low_rank.scaling)
        self.power = 0

    def flow(self) -> Tensor:
        """R / 2^`power`. It is rescaled exactly after every block, so that it stays finite for any number of blocks."""
        self.power = 0
        x = self._through(self.family.before_blocks, torch.ones(self.width, dtype=torch.float64, device=self.device))
        h = None
        for layer in range(len(self.space.blocks)):
            # Checkpointing: the absolute values of a block take twice its memory and are recomputed in backward.
            x, h = checkpoint(self._block, layer, x, h, use_reentrant=False)
            power = math.frexp(float(x.detach().max()))[1]
            x, h, self.power = x * 2.0**-power, h * 2.0**-power, self.power + power
        return TOKENS * self._through(self.family.after_blocks, x).sum()

    def unscaled(self, values: Sequence[float]) -> list[float]:
        """`values` · 2^`power`; a lower power of two if a sum of the results would overflow."""
        highest = math.frexp(max(values, default=0.0))[1]
        power = min(self.power, 1000 - highest)
        return [math.ldexp(value, power) for value in values]

    def _block(self, layer: int, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Block input x (width,), h of the block before -> block output y, own h; see `elements.shortcut`."""
        block = self.space.blocks[layer]
        shortcuts = getattr(block, "shortcuts", None)
        again = shortcuts is not None and shortcuts.renormalize
        delta = partial(self._delta, layer)

        def linear(name: str, source: Tensor) -> Tensor:
            return self._linear(block.get_submodule(self.family.linears[name]), source)

        def norm(path: str, values: Tensor) -> Tensor:
            """The values after a norm, if the block has it."""
            return self._norm(block.get_submodule(path), values) if path else values

        norm1, norm2 = partial(norm, self.family.norm1), partial(norm, self.family.norm2)

        def attention(source: Tensor) -> Tensor:
            values = linear("v_proj", source)
            wanted = widths_of(_base(block.get_submodule(self.family.linears["o_proj"])))[0]
            of_head = values.view(-1, wanted // self.heads)  # (key-value heads, width of a head)
            spread = of_head.repeat_interleave(wanted // values.numel(), dim=0).flatten()
            return norm(self.family.end_norm1, linear("o_proj", spread))

        def feed_forward(source: Tensor) -> Tensor:
            inner = linear("w1", source)
            inner = inner + linear("gate", source) if "gate" in self.family.linears else inner
            return norm(self.family.end_norm2, linear("w2", inner))

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
        """Apply the linear layers and norms at `paths` to x; paths that the model does not have are skipped."""
        for module in (self.modules[path] for path in paths if path in self.modules):
            x = (self._linear if is_linear(_base(module)) else self._norm)(module, x)
        return x

    def _linear(self, module: nn.Module, x: Tensor) -> Tensor:
        """A linear layer, with its element if it has one that is on."""
        y = self._positive(base_weight(_base(module), "synflow")) @ x
        if not isinstance(module, LoraLinear):
            return y
        element = module.low_rank.element
        return y + self._delta(element.layer, element.name, x)

    def _delta(self, layer: int, name: str, x: Tensor) -> Tensor | float:
        """delta(x) of an element; 0 if there is none, or if it is off."""
        factors = self.factors.get((layer, name))
        return 0.0 if factors is None else factors.delta(x)

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        weight = cast("Tensor | None", module.weight)
        return x if weight is None else self._positive(self.family.norm_offset + weight) * x

    def _positive(self, weight: Tensor) -> Tensor:
        return gathered(weight.detach()).to(self.device, torch.float64).abs()


def _base(module: nn.Module) -> nn.Module:
    """The library's own linear layer."""
    return module.base if isinstance(module, LoraLinear) else module
