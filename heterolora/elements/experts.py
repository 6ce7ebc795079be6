"""LoRA on the experts of a mixture, which Transformers keeps as one parameter for all experts of a layer."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterolora.common.distributed import gathered
from heterolora.elements.low_rank import LowRank


def is_transposed(experts: nn.Module) -> bool:
    """Whether the parameters are (experts, in, out). Otherwise they are (experts, out, in).

    PEFT reads the same attribute, so its adapters fit also where a model does not have it and transposes its weights.
    """
    return bool(getattr(experts, "is_transposed", False))


def shape_of(network: nn.Module, parameter: str) -> tuple[int, int, int]:
    """(experts, in, out) of a parameter of a network."""
    host, _, name = parameter.rpartition(".")
    experts = network.get_submodule(host)
    number, rows, columns = getattr(experts, name).shape
    return (number, rows, columns) if is_transposed(experts) else (number, columns, rows)


class LoraExperts(nn.Module):
    """The experts of a layer, with W + delta in place of each parameter W that has an element that is on.

    delta is `scaling · B_e A_e` for each expert e. The module of the experts is wrapped, neither copied nor subclassed.
    The sum is a tensor of the size of W, which exists while the layer runs and, in training, until its backward pass.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.low_ranks = nn.ModuleDict()  # by name of the parameter

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        present = {name: each for name, each in self.low_ranks.items() if isinstance(each, LowRank) and each.present}
        changed = {name: self._changed(getattr(self.base, name), low_rank) for name, low_rank in present.items()}
        return functional_call(self.base, changed, args, kwargs) if changed else self.base(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Attributes that it does not have are those of the experts, because some networks read them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def add(self, name: str, low_rank: LowRank) -> None:
        """Add an element to the parameter of that name."""
        self.low_ranks[name] = low_rank

    def low_rank_of(self, name: str) -> LowRank:
        return cast(LowRank, self.low_ranks[name])

    def weight_of(self, name: str) -> Tensor:
        """A parameter of the base as (experts, out, in), without the element. Every process gathers it if sharded."""
        weight = gathered(getattr(self.base, name).detach())
        return weight.mT if is_transposed(self.base) else weight

    def _changed(self, weight: Tensor, low_rank: LowRank) -> Tensor:
        swap = is_transposed(self.base)
        if low_rank.enabled:
            A, B = (factor.to(weight.dtype) for factor in low_rank.by_expert)
            left, right = (A.mT, B.mT) if swap else (B, A)
            with torch.autocast(weight.device.type, enabled=False):  # a weight keeps its dtype
                weight = torch.baddbmm(weight, left, right, alpha=low_rank.importance * low_rank.scaling)
        if low_rank.probe is None:
            return weight
        return low_rank.probe.of_weight(weight.mT).mT if swap else low_rank.probe.of_weight(weight)
