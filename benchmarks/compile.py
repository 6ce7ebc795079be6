"""Training step with compiled blocks (--compile), against the same step without, and the time to compile a block.

LoRA is on all six projections. Both ways must give the same logits before they are timed. A block is compiled once for
each pattern of elements that are on: when it first runs, and when one of its elements is switched. The seconds of
compiling are those of the wall clock; the compiler may use several cores.
"""

from __future__ import annotations

import argparse
import time

import torch

from actions.run.console import say
from benchmarks import measure, subjects
from model.compiling import compile_blocks

PLAIN, COMPILED = "uncompiled", "compiled"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The common options only."""


def run(args: argparse.Namespace) -> None:
    base, batch = subjects.base(args), subjects.batch(args)
    say(measure.heading(args, "training step of opt_lora with compiled blocks, and without"))
    lora = subjects.lora(args.rank, subjects.ALL)
    networks, spaces = zip(*(subjects.adapted(base, lora) for _ in (PLAIN, COMPILED)), strict=True)
    compile_blocks(spaces[1].blocks)
    every = {element.key for element in spaces[1].elements}
    for title, on in (("all elements on", every), ("w2 off", {key for key in every if not key.endswith(".w2")})):
        for space in spaces:
            space.switch(on)
        start = time.perf_counter()
        networks[1].train()(**batch).loss.backward()
        seconds = time.perf_counter() - start
        networks[1].zero_grad()
        torch.testing.assert_close(*(network(**batch).logits for network in networks), rtol=1e-4, atol=1e-5)
        say(f"{title}: {seconds:.1f} s to compile {len(spaces[1].blocks)} blocks, forward and backward")
    for space in spaces:
        space.switch(every)
    subjects.compare_steps(dict(zip((PLAIN, COMPILED), networks, strict=True)), batch, "all six projections", args)
