"""Σ|A ∘ ∂L/∂A| + Σ|B ∘ ∂L/∂B| (SNIP: Lee et al. 2019, arXiv:1810.02340).

With a mask c on every weight, w = c ∘ A, the entry is |∂L/∂c| at c = 1: what removing the weight would change.
"""

from __future__ import annotations

from torch import Tensor

from heterolora.saliency import register
from heterolora.saliency.gradients import GradientHeuristic


@register("snip", warmup_batches=32, ignores=("metric", "cut"))
class Snip(GradientHeuristic):
    def measure(self, weight: Tensor, total: Tensor) -> Tensor:
        return (weight * total).abs().sum()
