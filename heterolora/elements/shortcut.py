"""Shortcuts around the two halves of a Transformer block, attached to the library's own blocks.

With block input x, attention half a, feed-forward half f, input h of the feed-forward half, block output y, and h' the
h of the block before::

    pre-norm:   h = x + d_res1(x) + a + d_sc2(h')            y = h + d_res2(h) + f + d_sc1(x)
    post-norm:  h = LN1(x + d_res1(x) + a + d_sc2(h'))       y = LN2(h + d_res2(h) + f + d_sc1(x))

and with `renormalize` (the second d_sc2 and LN1 in every block but the first)::

    pre-norm:   h = LN1(x + d_res1(x) + a + d_sc2(h'))       y = LN2(h + d_res2(h) + f + d_sc1(x))
    post-norm:  h = LN1(LN1(x + d_res1(x) + a) + d_sc2(h'))  y = LN2(LN2(h + d_res2(h) + f) + d_sc1(x))

No block is copied. A delta reaches a sum through the last layer of its half: the output of `o_proj` is added to h, the
output of `w2` to y. If a block normalises the output of a half before the sum (Gemma 2), this norm is the last layer.
With experts, the delta is added to the output of the half. x and h are captured at the input of a layer: the half's
norm in a pre-norm block, `v_proj` and `w1` in a block without such norms.
If a family applies dropout to a half's output before the sum (OPT, RoBERTa, BERT), the delta is added before that
dropout.

The identity of a residual is the block's own residual connection. Identity and zero bases are never matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch
from torch import nn

from heterolora.elements.element import SHORTCUTS
from heterolora.elements.family import Family
from heterolora.elements.low_rank import LowRank

Inputs = tuple[torch.Tensor, ...]


@dataclass
class Held:
    """The tensors that pass from one hook to another, while an element still needs them."""

    x: torch.Tensor | None = None  # input of the running block
    h: torch.Tensor | None = None  # input of its feed-forward half
    before: tuple[int, torch.Tensor] | None = None  # (block, its h), for the next block
    shift: torch.Tensor | None = None  # the change of h by a pre-norm block's second LN1; the block's output needs it


@dataclass(eq=False)
class Carry:
    """Passes h from one block to the next. A network has one; it is empty between forward passes.

    Blocks run one after another, so all share one `Held`. It belongs to one forward call: a recomputation under
    activation checkpointing gets its own, with the h of that forward call.
    """

    readers: dict[int, LowRank] = field(default_factory=dict)  # block -> its `shortcut2`
    held: Held = field(default_factory=Held)

    def __getstate__(self) -> dict[str, Any]:
        """Copy start empty, because an interrupted forward pass may have left tensors."""
        return {"readers": self.readers, "held": Held()}

    def wanted(self, layer: int) -> bool:
        """Whether the block after `layer` needs the h of this block."""
        reader = self.readers.get(layer + 1)
        return reader is not None and reader.present

    def put(self, layer: int, h: torch.Tensor) -> None:
        self.held.before = (layer, h)

    def take(self, layer: int) -> torch.Tensor:
        """The h of the block before `layer`. It can be taken once."""
        before, self.held.before = self.held.before, None
        if before is None or before[0] != layer - 1:
            raise RuntimeError(f"block {layer} runs without the h of block {layer - 1}")
        return before[1]

    def contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """`context_fn` of `torch.utils.checkpoint` (non-reentrant), which is called once for each call of a block."""
        return nullcontext(), _Recomputation(self, self.held.before)


class _Recomputation(AbstractContextManager[None]):
    """Gives a recomputed block the h of its forward call, and drops the tensors that the recomputation leaves.

    A recomputation stops as soon as backward has all tensors that it needs, so a captured x may remain unused.
    """

    def __init__(self, carry: Carry, before: tuple[int, torch.Tensor] | None) -> None:
        self.carry, self.before = carry, before
        self.outside = Held()

    def __enter__(self) -> None:
        self.outside, self.carry.held = self.carry.held, Held(before=self.before)

    def __exit__(self, *_: object) -> None:
        self.carry.held = self.outside


class Shortcuts(nn.Module):
    """The shortcuts of one block, and their hooks. It is a submodule of the block.

    Every hook is a method of this module, so a deep copy of the network uses its own copy of the module. x and h are
    captured only for elements that are present (on, or probed), and are released after their last use.
    """

    residual1: LowRank | None
    residual2: LowRank | None
    shortcut1: LowRank | None
    shortcut2: LowRank | None

    def __init__(self, layer: int, elements: Mapping[str, LowRank], carry: Carry, renormalize: bool) -> None:
        super().__init__()
        self.layer, self.carry, self.renormalize = layer, carry, renormalize
        for name in SHORTCUTS:
            self.register_module(name, elements.get(name))
        if "shortcut2" in elements:
            carry.readers[layer] = elements["shortcut2"]

    def attach(self, block: nn.Module, family: Family, pre_norm: bool) -> None:
        """Add this module and its hooks to `block`. LoRA must have wrapped the linear layers already."""
        at = block.get_submodule
        if self.renormalize:
            self._renormalize(block, at(family.norm1), at(family.norm2), pre_norm)
        self.cross_after_norm = self.renormalize and not pre_norm
        block.add_module("shortcuts", self)
        for path, see in zip(family.starts(pre_norm), (self.see_x, self.see_h), strict=True):
            at(path).register_forward_pre_hook(see)
        for path, add in zip(family.ends, (self.add_to_h, self.add_to_y), strict=True):
            at(path).register_forward_hook(add)

    def _renormalize(self, block: nn.Module, norm1: nn.Module, norm2: nn.Module, pre_norm: bool) -> None:
        self.norms = (norm1, norm2)  # a tuple refers to modules without registering them
        if pre_norm:
            if self.layer > 0:
                norm2.register_forward_pre_hook(self.normalise_h)  # before `see_h`
            block.register_forward_hook(self.normalise_y)
            return
        if self.layer > 0:
            norm1.register_forward_hook(self.cross_and_normalise_h)
        norm2.register_forward_hook(self.cross_and_normalise_y)

    def see_x(self, _module: nn.Module, args: Inputs) -> None:
        if _present(self.residual1) or _present(self.shortcut1):
            self.carry.held.x = args[0]

    def see_h(self, _module: nn.Module, args: Inputs) -> None:
        if _present(self.residual2):
            self.carry.held.h = args[0]
        if self.carry.wanted(self.layer):
            self.carry.put(self.layer, args[0])

    def add_to_h(self, _module: nn.Module, _args: Inputs, output: torch.Tensor) -> torch.Tensor:
        held = self.carry.held
        if _present(self.residual1):
            output = self.residual1(held.x, onto=output)
            if not _present(self.shortcut1):
                held.x = None
        return output if self.cross_after_norm else self._add_shortcut2(output)

    def add_to_y(self, _module: nn.Module, _args: Inputs, output: Any) -> Any:
        if isinstance(output, tuple):  # of experts, whose second value is the choice of the router
            return (self.add_to_y(_module, _args, output[0]), *output[1:])
        if _present(self.residual2):
            output = self.residual2(self.carry.held.h, onto=output)
            self.carry.held.h = None
        return output if self.cross_after_norm else self._add_shortcut1(output)

    def _add_shortcut2(self, output: torch.Tensor) -> torch.Tensor:
        return self.shortcut2(self.carry.take(self.layer), onto=output) if _present(self.shortcut2) else output

    def _add_shortcut1(self, output: torch.Tensor) -> torch.Tensor:
        if _present(self.shortcut1):
            output = self.shortcut1(self.carry.held.x, onto=output)
            self.carry.held.x = None
        return output

    # The second normalisation calls `forward` of the norms, so that their hooks do not run again.

    def cross_and_normalise_h(self, norm1: nn.Module, _args: Inputs, output: torch.Tensor) -> torch.Tensor:
        h: torch.Tensor = norm1.forward(self._add_shortcut2(output))
        return h

    def cross_and_normalise_y(self, norm2: nn.Module, _args: Inputs, output: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = norm2.forward(self._add_shortcut1(output))
        return y

    def normalise_h(self, _norm2: nn.Module, args: Inputs) -> Inputs:
        """The feed-forward half gets LN1(h). The block adds its own h to the sum; `normalise_y` corrects that."""
        h = self.norms[0].forward(args[0])
        self.carry.held.shift = h - args[0]
        return (h, *args[1:])

    def normalise_y(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        if self.carry.held.shift is not None:
            y = y + self.carry.held.shift.view_as(y)
            self.carry.held.shift = None
        y = self.norms[1].forward(y)
        return (y, *output[1:]) if isinstance(output, tuple) else y


def _present(element: LowRank | None) -> TypeGuard[LowRank]:
    return element is not None and element.present
