"""The frozen weight at a place, for heuristics that read it."""

from __future__ import annotations

from torch import Tensor, nn

from heterolora.common.distributed import gathered
from heterolora.common.errors import UserError


def base_weight(base: nn.Module, heuristic: str) -> Tensor:
    """The weight (out, in) of a linear layer of the base. Every process gathers it if it is sharded.

    Raises UserError if the layer is quantised: then its tensor has another shape, or whole numbers.
    """
    weight = base.weight.detach()
    own_shape = not isinstance(base, nn.Linear) or weight.shape == (base.out_features, base.in_features)
    if not own_shape or not weight.is_floating_point():
        raise UserError(
            f"{heuristic} needs the weights of the base, which a quantised base does not provide",
            "use the unquantised base, or another heuristic",
        )
    weight = gathered(weight)
    return weight if isinstance(base, nn.Linear) else weight.t()  # Transformers' Conv1D has (in, out)
