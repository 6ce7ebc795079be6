"""Score the linear layers of a hand-written network with a loss function of your own, by several heuristics.

pip install .
python examples/score_your_own_network.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import heterolora as hl

Batch = tuple[Tensor, Tensor]


class Mixer(nn.Module):
    """Four residual blocks and a regression head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(4)
        )
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def loss(network: nn.Module, batch: Batch) -> Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(network(inputs), targets)


def main() -> None:
    torch.manual_seed(0)
    network = Mixer()
    batches = [(torch.randn(16, 32), torch.randn(16, 1)) for _ in range(8)]
    for heuristic in ("grad_norm", "fisher", "snip"):
        scores = hl.score(network, batches, heuristic, loss=loss, target_modules=r"blocks\.\d+\.\d+")
        best, score = next(iter(scores.by_module().items()))
        print(f"{heuristic:10s} best layer: {best} ({score:.3g})")


if __name__ == "__main__":
    main()
