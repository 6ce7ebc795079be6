"""Σ (∂ℓ/∂A)² + Σ (∂ℓ/∂B)², ℓ of one batch, summed over batches (Theis et al. 2018, arXiv:1801.05787).

The diagonal of the empirical Fisher information, on parameters instead of the paper's channels.
"""

from __future__ import annotations

from torch import Tensor

from heterolora.saliency import register
from heterolora.saliency.gradients import GradientHeuristic


@register("fisher", ignores=("metric",))
class Fisher(GradientHeuristic):
    def of_batch(self, gradient: Tensor) -> Tensor:
        return gradient.square()

    def measure(self, weight: Tensor, total: Tensor) -> Tensor:
        return total.sum()
