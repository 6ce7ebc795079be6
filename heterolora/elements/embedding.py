"""LoRA on the token embedding, a linear map of one-hot rows."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from heterolora.elements.low_rank import LowRank


class LoraEmbedding(nn.Module):
    """`y = base(ids) + scale · delta(ids)`; exactly `base(ids)` while the element is off.

    delta(ids) is `importance · scaling · B A` for the one-hot rows of the ids: columns of A are chosen, not summed. An
    embedding that scales its rows has an `embed_scale`, which scales delta too, as in PEFT. The base is wrapped,
    neither copied nor subclassed.
    """

    def __init__(self, base: nn.Module, low_rank: LowRank) -> None:
        super().__init__()
        self.base = base
        self.low_rank = low_rank

    def forward(self, ids: Tensor) -> Tensor:
        """ids (...) -> y (..., out), in the dtype of base(ids)."""
        y: Tensor = self.base(ids)
        if not self.low_rank.present:
            return y
        delta, scale = self._delta(ids), getattr(self.base, "embed_scale", None)
        return y + (delta if scale is None else delta * scale).to(y.dtype)

    def __getattr__(self, name: str) -> Any:
        """Attributes that it does not have are those of the embedding, because some networks read them."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def _delta(self, ids: Tensor) -> Tensor:
        """delta(ids) (..., out). A probe observes it, also while the element is off."""
        A, B = self.low_rank.A, self.low_rank.B
        if self.low_rank.enabled:
            factor = self.low_rank.importance * self.low_rank.scaling
            delta = F.embedding(ids, A.t()) @ B.t() * factor
        else:
            delta = B.new_zeros(*ids.shape, len(B))
        probe = self.low_rank.probe
        return delta if probe is None else probe(ids.unsqueeze(-1), delta)
