"""‖∂L/∂A‖₂ + ‖∂L/∂B‖₂ (Abdelfattah et al. 2021, arXiv:2101.08134)."""

from __future__ import annotations

from torch import Tensor

from heterolora.saliency import register
from heterolora.saliency.gradients import GradientHeuristic


@register("grad_norm", ignores=("metric", "cut"))
class GradNorm(GradientHeuristic):
    def measure(self, weight: Tensor, total: Tensor) -> Tensor:
        norm: Tensor = total.norm()
        return norm
