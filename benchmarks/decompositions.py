"""The leading singular triplets of a weight's gradient, for `spectral`: by torch.svd_lowrank, against all of them.

The matrices are those of the places of a block of SmolLM2-135M. Both must give the same largest singular values.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from actions.run.console import say
from benchmarks import measure
from heterolora.saliency.weight_gradients import leading_directions

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
_SIGNAL = 20  # directions above the noise


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=5)


def run(args: argparse.Namespace) -> None:
    say(measure.heading(args, f"the leading {args.rank} singular triplets of the {len(SHAPES)} places of a block"))
    torch.manual_seed(0)
    matrices = [_matrix(*shape).to(args.device) for shape in SHAPES]
    for matrix in matrices:
        leading, complete = leading_directions(matrix, args.rank)[1], torch.linalg.svdvals(matrix)[: args.rank]
        torch.testing.assert_close(leading, complete, rtol=0.02, atol=0.0)
    ways: dict[str, measure.Step] = {
        "all": lambda: [torch.linalg.svd(matrix, full_matrices=False) for matrix in matrices],
        "leading": lambda: [leading_directions(matrix, args.rank) for matrix in matrices],
    }
    say(measure.by_turns(ways, args.rounds, args.device).table("all"))


def _matrix(rows: int, columns: int) -> Tensor:
    """Some directions, of which each next one is shorter, and noise."""
    scales = 2 / torch.arange(1, _SIGNAL + 1)
    signal = (torch.randn(rows, _SIGNAL) * scales) @ torch.randn(_SIGNAL, columns) / (rows * columns) ** 0.5
    return signal + torch.randn(rows, columns) / 300
