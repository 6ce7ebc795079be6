"""Timing by turns, peak memory, and the machine that figures come from."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from heterolora.errors import UserError

Step = Callable[[], Any]


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of some figures."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        return cls(median(figures), min(figures), max(figures))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f}–{self.high:.3f})"


@dataclass(frozen=True)
class Seconds:
    """What `by_turns` measured.

    Attributes:
        rounds: variant -> its seconds in each round.
    """

    rounds: Mapping[str, tuple[float, ...]]

    def spread(self, name: str) -> Spread:
        """Seconds of a variant."""
        return Spread.of(self.rounds[name])

    def ratio(self, over: str, under: str) -> Spread:
        """How many times as long `over` took as `under`, round by round."""
        return Spread.of([a / b for a, b in zip(self.rounds[over], self.rounds[under], strict=True)])


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch's kernels, so that CPU time is the work that was done."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _cheap_collections() -> Iterator[None]:
    """Garbage collections look at what is made from here on only: one before each measurement costs little."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def by_turns(variants: Mapping[str, Step], rounds: int, device: torch.device, warm_up: int = 2) -> Seconds:
    """Seconds of every variant in `rounds` rounds, each of which runs all of them, beginning with another one.

    Args:
        variants: name -> what to time.
        rounds: how many.
        device: CPU: the process's CPU time. Else: the clock on the wall, until the device is done.
        warm_up: rounds that are not counted.
    """
    names = list(variants)
    measured: dict[str, list[float]] = {name: [] for name in names}
    with one_thread(), _cheap_collections():
        for turn in range(-warm_up, rounds):
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                seconds = _time(variants[name], device)
                if turn >= 0:
                    measured[name].append(seconds)
    return Seconds({name: tuple(seconds) for name, seconds in measured.items()})


def _time(step: Step, device: torch.device) -> float:
    gc.collect()
    gc.disable()  # whose garbage is collected when is chance
    try:
        if device.type == "cpu":
            start = time.process_time()
            step()
            return time.process_time() - start
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        step()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    finally:
        gc.enable()


def peak_memory(step: Step, device: torch.device) -> int:
    """The most bytes of tensors that `step` has allocated at once, beyond what was there before. Run it once first:
    gradients and optimizer state that stay are made then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _no_stderr(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    allocated = peak = 0
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return peak


@contextmanager
def _no_stderr() -> Iterator[None]:
    """The profiler's library writes lines of its own to stderr, past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept), os.close(nowhere)


def add_options(parser: argparse.ArgumentParser, rounds: int = 15) -> None:
    """The options of everything that is timed by turns."""
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=f"rounds to time (default: {rounds})")
    parser.add_argument("--device", help="cpu or cuda (default: the GPU where there is one)")


def device_of(args: argparse.Namespace) -> torch.device:
    """`--device`, by default the GPU where there is one."""
    gpu = torch.cuda.is_available()
    if args.device not in (None, "cpu", "cuda") or (args.device == "cuda" and not gpu):
        raise UserError(f"--device {args.device} is not here", f"expected {'cpu or cuda' if gpu else 'cpu'}")
    return torch.device(args.device or ("cuda" if gpu else "cpu"))


def heading(args: argparse.Namespace, device: torch.device, what: str) -> str:
    """What was measured, by which command, on which machine: the first lines of every report."""
    return f"{what}\ncommand: {args.command}\nmachine: {machine(device)}\n"


def machine(device: torch.device) -> str:
    """The device, the processor, and the versions that figures depend on."""
    threads = "1 thread" if device.type == "cpu" else torch.cuda.get_device_name(device)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{_processor()}, {os.cpu_count()} cores, {threads}, {versions}"


def _processor() -> str:
    """The processor's own name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def seconds_table(seconds: Seconds, reference: str) -> Table:
    """Each variant: seconds, and how many times as long as `reference` it took; medians (least – most)."""
    rounds = len(seconds.rounds[reference])
    table = Table("variant", f"seconds, {rounds} rounds", f"ratio to {reference}")
    for name in seconds.rounds:
        table.add_row(name, str(seconds.spread(name)), str(seconds.ratio(name, reference)))
    return table


def memory_table(steps: Mapping[str, Step], device: torch.device) -> Table:
    """`peak_memory` of each variant."""
    table = Table("variant", "peak memory of a step, MiB")
    for name, step in steps.items():
        table.add_row(name, f"{peak_memory(step, device) / 2**20:.1f}")
    return table
