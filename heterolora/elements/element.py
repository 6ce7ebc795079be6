"""What an element is: a place in a network, and the low-rank map that can be there. Imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from heterolora.common.errors import UserError

Kind = Literal["lora", "shortcut"]
KINDS: tuple[Kind, ...] = ("lora", "shortcut")

#: Canonical projection names, in the order of every table, and the other names that files may use for them.
PROJECTIONS: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("query",),
    "k_proj": ("key",),
    "v_proj": ("value",),
    "o_proj": ("out_proj",),
    "w1": ("fc1", "up_proj"),
    "w2": ("fc2", "down_proj"),
    "gate": ("gate_proj",),
}
#: The shortcuts: residual1 x -> h, residual2 h -> y, shortcut1 x -> y, shortcut2 h of the previous block -> h.
SHORTCUTS: tuple[str, ...] = ("residual1", "residual2", "shortcut1", "shortcut2")
#: Places outside of the blocks -> their number in place of a block's, which puts them before or after all blocks.
OUTSIDE: Mapping[str, int] = {"embed_tokens": -1, "lm_head": 10**9}
NAMES: tuple[str, ...] = (*PROJECTIONS, *SHORTCUTS)  # all canonical names, in the order of tables and pictures


def order_of(name: str) -> tuple[int, str]:
    """Sort key of element names: canonical names in their order, then all others alphabetically."""
    return (NAMES.index(name) if name in NAMES else len(NAMES), name)


@dataclass(frozen=True)
class Settings:
    """The settings of a low-rank map, as one table of a configuration file gives them.

    Attributes:
        rank: r; 0 means that there is no element.
        alpha: the scaling is alpha / r.
        dropout: probability in [0, 1) of dropping an entry of the input in training.
        use_rslora: the scaling is alpha / sqrt(r) instead (Kalajdzievski 2023, arXiv:2312.03732).
        disabled: there is no element, whatever the rank.
        adapter: a label without effect; it is ignored when settings are compared.
    """

    rank: int = 0
    alpha: float = 0.0
    dropout: float = 0.0
    use_rslora: bool = False
    disabled: bool = False
    adapter: str = field(default="default", compare=False)

    @property
    def candidate(self) -> bool:
        """Whether there is an element."""
        return self.rank > 0 and not self.disabled

    @property
    def scaling(self) -> float:
        """The factor of B(A(x)): alpha / r, or alpha / sqrt(r) with `use_rslora`."""
        return self.alpha / _divisor(self.rank, self.use_rslora)

    def at(self, rank: int) -> Settings:
        """The same settings at another rank. alpha changes so that the scaling stays the same. With `use_rslora`, alpha
        stays the same and the scaling becomes alpha / sqrt(rank): that is what lets one learning rate fit all ranks.
        """
        return replace(self, rank=rank, alpha=self.alpha * (1 if self.use_rslora else rank / self.rank))


def _divisor(rank: int, use_rslora: bool) -> float:
    return math.sqrt(rank) if use_rslora else rank


def alpha_of(scaling: float, rank: int, use_rslora: bool) -> float:
    """The alpha with which an element of this rank has this scaling."""
    return scaling * _divisor(rank, use_rslora)


@dataclass(frozen=True)
class Place:
    """A place in the search space: a block, from 0, and a name in it, e.g. `q_proj` or `shortcut1`.

    A place outside of the blocks has a name of `OUTSIDE`, and its number.
    """

    layer: int
    name: str

    @property
    def key(self) -> str:
        """The name in every file: `layer_<i>.<name>`, or `outside.<name>`."""
        return f"{self.table}.{self.name}"

    @property
    def table(self) -> str:
        """The table of every file that it is in: `layer_<i>` or `outside`."""
        return "outside" if self.is_outside else f"layer_{self.layer}"

    @property
    def block(self) -> str:
        """The number of the block, or `outside`."""
        return self.table.removeprefix("layer_")

    @property
    def order(self) -> tuple[int, int]:
        """The key that sorts places by block, and within a block in the order of `order_of`."""
        return self.layer, order_of(self.name)[0]

    @property
    def is_outside(self) -> bool:
        """Whether it is outside of the blocks."""
        return self.layer in OUTSIDE.values()

    def after(self, blocks: int) -> int:
        """The number of blocks, of so many, that come before it."""
        return min(max(self.layer, 0), blocks)


@dataclass(frozen=True)
class Element(Place):
    """One candidate of the search space.

    Attributes:
        module: path in the network of the linear layer or the token embedding (LoRA, e.g.
            `model.decoder.layers.0.self_attn.q_proj`), of the parameter with the weights of all experts (LoRA, e.g.
            `model.layers.0.mlp.experts.down_proj`), or of the block (shortcut, e.g. `model.decoder.layers.0`).
        experts: the number of experts in that parameter. Each has a map of the element's rank. 1 for a linear layer.
    """

    kind: Kind
    module: str
    in_features: int
    out_features: int
    settings: Settings
    experts: int = 1

    @property
    def rank(self) -> int:
        return self.settings.rank

    @property
    def highest_rank(self) -> int:
        """The rank of a full matrix. A higher one adds parameters but no map that this rank does not have."""
        return min(self.in_features, self.out_features)

    @property
    def width(self) -> int:
        """Number of trainable parameters of one rank, experts · (in + out)."""
        return self.experts * (self.in_features + self.out_features)

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, r · experts · (in + out)."""
        return self.rank * self.width

    @property
    def is_embedding(self) -> bool:
        """Whether it is on the token embedding, whose inputs are ids of tokens."""
        return self.layer == OUTSIDE["embed_tokens"]

    @property
    def host(self) -> str:
        """Path of the module that gets the element: the linear layer, the experts of a layer, or the block."""
        return self.module if self.experts == 1 else self.module.rpartition(".")[0]

    @property
    def weight(self) -> str:
        """Name of the parameter that a LoRA element changes."""
        return f"{self.module}.weight" if self.experts == 1 else self.module

    def single(self, index: int) -> Self:
        """One of its ranks, as an element of rank 1 with its scaling."""
        settings = replace(self.settings, rank=1, alpha=self.settings.scaling, use_rslora=False)
        return replace(self, name=f"{self.name}.{index}", settings=settings)


def check_ranks(elements: Iterable[Element]) -> None:
    """Raise UserError if the rank of an element is above its widths."""
    for element in elements:
        if element.rank > element.highest_rank:
            raise UserError(
                f"the rank of {element.key} is {element.rank}, but its widths are {element.in_features} and "
                f"{element.out_features}",
                f"expected at most {element.highest_rank}",
            )


def check_outside(elements: Iterable[Element], possible: Collection[str], what: str, advice: str) -> None:
    """Raise UserError if an element is outside of the blocks, with which `what` can be done only at some places."""
    if found := next((each.name for each in elements if each.is_outside and each.name not in possible), None):
        raise UserError(f"{what} {found}, which is outside of the blocks", advice)


def check_no_experts(elements: Iterable[Element], what: str, advice: str) -> None:
    """Raise UserError if an element is on the weights of experts, with which `what` cannot be done."""
    if (found := next((element for element in elements if element.experts > 1), None)) is not None:
        raise UserError(f"{what} the weights of experts, such as {found.key}", advice)


def at_ranks(elements: Iterable[Element], ranks: Mapping[str, int]) -> list[Element]:
    """The elements that have a rank above 0 in `ranks` (key -> rank), at that rank."""
    found = ((element, ranks.get(element.key, 0)) for element in elements)
    return [replace(element, settings=element.settings.at(rank)) for element, rank in found if rank > 0]
