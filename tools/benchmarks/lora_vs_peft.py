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

from actions.console import say
from heterolora.search_space import SearchSpace
from tools import measure, subjects


def add_options(parser: argparse.ArgumentParser) -> None:
    measure.add_options(parser)
    subjects.add_options(parser)


def run(args: argparse.Namespace) -> None:
    device = measure.device_of(args)
    base, batch = subjects.base(args, device), subjects.batch(args, device)
    say(measure.heading(args, device, "training step of opt_lora and of peft.LoraModel"))
    for title, names in subjects.PLACES.items():
        ours, space = subjects.adapted(base, subjects.lora(args.rank, names))
        theirs = with_peft(copy.deepcopy(base), space, args.rank)
        check_same(ours, theirs, batch)
        steps = {"ours": subjects.training_step(ours, batch), "peft": subjects.training_step(theirs, batch)}
        seconds = measure.by_turns(steps, args.rounds, device)
        table = measure.seconds_table(seconds, "ours")
        table.title = f"LoRA on {title}"
        say(table)
        say(measure.memory_table(steps, device))


def with_peft(network: nn.Module, space: SearchSpace, rank: int) -> peft.LoraModel:
    """PEFT's LoRA in the places, and with the A and B, of `space`; the head trains too, as ours does."""
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


def check_same(ours: nn.Module, theirs: nn.Module, batch: subjects.Batch) -> None:
    """Both compute the same, or the comparison is void."""
    gradients = []
    for model in (ours, theirs):
        output = model(**batch)
        output.loss.backward()
        norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.stack([*sorted(norms), *output.logits.detach().flatten()]))
        model.zero_grad()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)
