"""The SHA-256 of a base model at the start of a run: kept from the run before, against computed from all bytes."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets

from actions.run.console import say
from benchmarks import measure, subjects
from model.base_digest import RECENT, KeptDigest
from model.tensor_file import digest_of

COMPUTED, KEPT = "computed", "kept"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(layers=12)


def run(args: argparse.Namespace) -> None:
    network = subjects.base(args)
    tensors = network.state_dict()

    def compute() -> str:
        return digest_of(tensors).hexdigest()

    own_cache = datasets.config.HF_DATASETS_CACHE
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        time.sleep(RECENT + 1)
        datasets.config.HF_DATASETS_CACHE = Path(folder) / "cache"
        try:
            KeptDigest(folder).of("", compute)
            ways: dict[str, Callable[[], Any]] = {COMPUTED: compute, KEPT: partial(_kept, folder)}
            seconds = measure.by_turns(ways, args.rounds, args.device)
        finally:
            datasets.config.HF_DATASETS_CACHE = own_cache
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    say(measure.heading(args, f"SHA-256 of a base of {size / 1e9:.2f} GB"))
    say(seconds.table(COMPUTED))


def _kept(folder: str) -> None:
    def unexpected() -> str:
        raise RuntimeError("the digest was not kept")

    KeptDigest(folder).of("", unexpected)
