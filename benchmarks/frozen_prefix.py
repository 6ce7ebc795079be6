"""Training with elements in the upper half of the blocks, with and without --cache-frozen-prefix, and in all blocks.

An epoch of --batches batches, whose rows are drawn anew in each epoch, is timed after the cache is full. All variants
have LoRA on all six projections of their blocks. The gradients with and without the cache are compared before.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from tools.cli import whole_number

import torch
from transformers import PreTrainedModel

from actions.run.console import note, say
from benchmarks import measure, subjects
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch
from model.task.frozen_prefix import FrozenPrefix
from model.task.row_cache import RowCache
from options.ranges import at_least

EVERYWHERE, UPPER, CACHED = "all blocks", "upper half", "upper half, cached"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batches", type=whole_number(at_least(1)), default=8, metavar="N", help="batches of an epoch (default: 8)"
    )


def run(args: argparse.Namespace) -> None:
    base = subjects.base(args)
    epochs = {name: _epoch(*_adapted(base, name, args), name == CACHED, args) for name in (EVERYWHERE, UPPER, CACHED)}
    say(measure.heading(args, f"an epoch of {args.batches} training steps of opt_lora"))
    say(measure.by_turns(epochs, args.rounds, args.device).table(CACHED))


def _adapted(base: PreTrainedModel, name: str, args: argparse.Namespace) -> tuple[PreTrainedModel, SearchSpace]:
    network, space = subjects.adapted(base, subjects.lora(args.rank, subjects.ALL))
    lowest = 0 if name == EVERYWHERE else args.layers // 2
    space.switch({element.key for element in space.elements if element.layer >= lowest})
    return network, space


def _epoch(network: PreTrainedModel, space: SearchSpace, cached: bool, args: argparse.Namespace) -> measure.Step:
    prefix = FrozenPrefix(network, space, RowCache(2**40), note) if cached else None
    network.train()
    if prefix is not None:
        _check_same(network, prefix, args)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-5)
    generator = torch.Generator().manual_seed(0)

    def epoch() -> None:
        for index, batch in _batches(generator, args):
            with _reused(prefix, index, batch):
                loss = network(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def _batches(generator: torch.Generator, args: argparse.Namespace) -> Iterator[tuple[torch.Tensor, Batch]]:
    """The rows of an epoch in random order: their numbers, and the batch."""
    whole = subjects.batch(argparse.Namespace(**{**vars(args), "rows": args.rows * args.batches}))
    for index in torch.randperm(args.rows * args.batches, generator=generator).split(args.rows):
        yield index, {name: tensor[index.to(args.device)] for name, tensor in whole.items()}


def _reused(prefix: FrozenPrefix | None, index: torch.Tensor, batch: Batch) -> AbstractContextManager[None]:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if prefix is None:
        return nullcontext()
    return prefix.reused({**inputs, "index": index.to(inputs["input_ids"].device)}, inputs)


def _check_same(network: PreTrainedModel, prefix: FrozenPrefix, args: argparse.Namespace) -> None:
    """Check that loss and gradients are the same without the cache, when it is filled, and when it is used."""
    index, batch = next(_batches(torch.Generator().manual_seed(0), args))
    results = []
    for each in (None, prefix, prefix):
        with _reused(each, index, batch):
            loss = network(**batch).loss
        loss.backward()
        norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
        results.append(torch.stack([loss.detach(), *norms]))
        network.zero_grad()
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-4, atol=1e-6)
