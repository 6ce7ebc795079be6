"""Training step with all shortcuts on, against LoRA only and against the dense way to write them.

The dense way multiplies by the base of each shortcut, a d×d identity around a half and a d×d zero across them, as a
linear layer with frozen weights would. Both ways must give the same logits before they are timed.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actions.run.console import say
from benchmarks import measure, subjects
from heterolora.elements.low_rank import LowRank
from heterolora.elements.search_space import SearchSpace

LORA, OURS, DENSE = "LoRA only", "with shortcuts", "with dense shortcuts"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The common options only."""


def run(args: argparse.Namespace) -> None:
    base, batch = subjects.base(args), subjects.batch(args)
    say(measure.heading(args, "training step of opt_lora_ags, all shortcuts on, and of opt_lora"))
    for title, names in subjects.PLACES.items():
        lora, shortcuts = subjects.lora(args.rank, names), subjects.shortcuts(args.rank)
        networks = {
            LORA: subjects.adapted(base, lora)[0],
            OURS: subjects.adapted(base, lora, shortcuts)[0],
            DENSE: with_bases(*subjects.adapted(base, lora, shortcuts)),
        }
        torch.testing.assert_close(*(networks[name](**batch).logits for name in (OURS, DENSE)))
        subjects.compare_steps(networks, batch, title, args)


class Dense(nn.Module):
    """A shortcut whose base is a matrix. Replaces the `LowRank` that a block calls."""

    base: Tensor

    def __init__(self, low_rank: LowRank, base: Tensor) -> None:
        super().__init__()
        self.low_rank, self.cross_layer = low_rank, not base.any()
        self.register_buffer("base", base)

    @property
    def present(self) -> bool:
        return self.low_rank.present

    def forward(self, x: Tensor, onto: Tensor) -> Tensor:
        through = F.linear(x, self.base)  # x or 0
        if self.cross_layer:
            return self.low_rank(x, onto=onto + through.view_as(onto))
        return self.low_rank(through, onto=onto)  # the block itself adds x


def with_bases(network: nn.Module, space: SearchSpace) -> nn.Module:
    """The network with dense shortcuts."""
    for low_rank in space.of_kind("shortcut"):
        element, A = low_rank.element, low_rank.A
        identity = torch.eye(A.shape[1], device=A.device)
        base = identity if element.name.startswith("residual") else torch.zeros_like(identity)
        setattr(space.blocks[element.layer].shortcuts, element.name, Dense(low_rank, base))
    return network
