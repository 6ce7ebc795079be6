"""Training step with all shortcuts on, against LoRA only and against the dense way to write them.

The dense way multiplies by the base of each shortcut, a d×d identity around a half and a d×d zero across them, as a
linear layer with frozen weights would. It computes the same, which is checked first.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from actions.console import say
from heterolora.low_rank import LowRank
from heterolora.search_space import SearchSpace
from tools import measure, subjects

LORA, OURS, DENSE = "LoRA only", "with shortcuts", "with dense shortcuts"


def add_options(parser: argparse.ArgumentParser) -> None:
    measure.add_options(parser)
    subjects.add_options(parser)


def run(args: argparse.Namespace) -> None:
    device = measure.device_of(args)
    base, batch = subjects.base(args, device), subjects.batch(args, device)
    say(measure.heading(args, device, "training step of opt_lora_ags, all shortcuts on, and of opt_lora"))
    for title, names in subjects.PLACES.items():
        lora, shortcuts = subjects.lora(args.rank, names), subjects.shortcuts(args.rank)
        networks = {
            LORA: subjects.adapted(base, lora)[0],
            OURS: subjects.adapted(base, lora, shortcuts)[0],
            DENSE: with_bases(*subjects.adapted(base, lora, shortcuts)),
        }
        torch.testing.assert_close(*(networks[name](**batch).logits for name in (OURS, DENSE)))
        steps = {name: subjects.training_step(network, batch) for name, network in networks.items()}
        table = measure.seconds_table(measure.by_turns(steps, args.rounds, device), LORA)
        table.title = f"LoRA on {title}"
        say(table)
        say(measure.memory_table(steps, device))


class Dense(nn.Module):
    """A shortcut whose base is a matrix. Stands in for its `LowRank` where a block calls it."""

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
    """The network, its shortcuts made dense."""
    for low_rank in space.of_kind("shortcut"):
        element, A = low_rank.element, low_rank.A
        identity = torch.eye(A.shape[1], device=A.device)
        base = identity if element.name.startswith("residual") else torch.zeros_like(identity)
        setattr(space.blocks[element.layer].shortcuts, element.name, Dense(low_rank, base))
    return network
