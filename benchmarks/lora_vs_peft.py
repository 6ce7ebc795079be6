"""Training step of opt_lora against the peft package: time and peak memory, same model, batch and process.

A step is forward, backward and AdamW. Before it is timed, both models must give the same logits and gradients from the
same A and B.
"""

from __future__ import annotations

import argparse
import copy

import peft
import torch
from torch import nn

from actions.run.console import say
from benchmarks import measure, subjects
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch


def add_options(parser: argparse.ArgumentParser) -> None:
    """The common options only."""


def run(args: argparse.Namespace) -> None:
    base, batch = subjects.base(args), subjects.batch(args)
    say(measure.heading(args, "training step of opt_lora and of peft.LoraModel"))
    for title, names in subjects.PLACES.items():
        ours, space = subjects.adapted(base, subjects.lora(args.rank, names))
        theirs = with_peft(copy.deepcopy(base), space, args.rank)
        check_same(ours, theirs, batch)
        subjects.compare_steps({"ours": ours, "peft": theirs}, batch, title, args)


def with_peft(network: nn.Module, space: SearchSpace, rank: int) -> peft.LoraModel:
    """PEFT's LoRA in the places of `space`, with its A and B. The head is trainable, as in our model."""
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=[element.module for element in space.elements])
    model = peft.LoraModel(network, config, "default")
    model.model.score.requires_grad_(True)
    wrapped = dict(model.model.named_modules())
    with torch.no_grad():
        for low_rank in space:
            theirs = wrapped[low_rank.element.module]
            theirs.lora_A["default"].weight.copy_(low_rank.A)
            theirs.lora_B["default"].weight.copy_(low_rank.B)
    return model


def check_same(ours: nn.Module, theirs: nn.Module, batch: Batch) -> None:
    """Check that both models give the same logits and gradient norms."""
    results = []
    for model in (ours, theirs):
        output = model(**batch)
        output.loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        results.append(torch.stack([*sorted(norms), *output.logits.detach().flatten()]))
        model.zero_grad()
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
