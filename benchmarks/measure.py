"""Times variants in turn, measures peak memory, and describes the machine."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import platform
import re
import tempfile
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from torch.utils import benchmark

from heterolora.common.errors import UserError

Step = Callable[[], Any]

one_thread = partial(benchmark.set_torch_threads, 1)  # a context in which CPU time is the work that was done


class Spread(NamedTuple):
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
    """The result of `by_turns`: variant → its seconds in each round."""

    rounds: Mapping[str, Sequence[float]]

    def spread(self, name: str) -> Spread:
        """Seconds of a variant."""
        return Spread.of(self.rounds[name])

    def ratio(self, over: str, under: str) -> Spread:
        """The time of `over` divided by that of `under`, round by round."""
        return Spread.of([a / b for a, b in zip(self.rounds[over], self.rounds[under], strict=True)])

    def table(self, reference: str, title: str | None = None) -> Table:
        """Seconds of each variant and their ratio to `reference`: median (smallest–largest)."""
        rounds = len(self.rounds[reference])
        table = Table("variant", f"seconds, {rounds} rounds", f"ratio to {reference}", title=title)
        for name in self.rounds:
            table.add_row(name, str(self.spread(name)), str(self.ratio(name, reference)))
        return table


def clock(device: torch.device) -> Callable[[], float]:
    """CPU: the CPU time of the process. GPU: the wall clock, read when the device has finished its work."""
    return time.process_time if device.type == "cpu" else benchmark.timer


def by_turns(
    variants: Mapping[str, Step],
    rounds: int,
    device: torch.device,
    warm_up: int = 2,
    seconds_of: Callable[[Step], float] | None = None,
) -> Seconds:
    """Time every variant in each round, beginning with another variant each time.

    The `warm_up` rounds at the start are not counted. `seconds_of` runs a variant and returns its seconds; by default
    it measures the whole call.
    """
    seconds_of = seconds_of or partial(timeit.timeit, timer=clock(device), number=1)  # no garbage collection inside
    names = list(variants)
    measured: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.freeze()  # the collections below look only at newer objects, so they are fast
    try:
        with one_thread():
            for turn in range(-warm_up, rounds):
                first = turn % len(names)
                for name in names[first:] + names[:first]:
                    gc.collect()
                    seconds = seconds_of(variants[name])
                    if turn >= 0:
                        measured[name].append(seconds)
    finally:
        gc.unfreeze()
    return Seconds(measured)


def peak_memory(step: Step, device: torch.device) -> int:
    """The largest number of bytes that `step` has allocated for tensors at one time, beyond those allocated before.

    Run `step` once before: the first run makes gradients and optimizer state that stay.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's library writes to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def device(name: str | None) -> torch.device:
    """The device of `--device`, by default the GPU if there is one. Raises UserError if it is not there."""
    gpu = torch.cuda.is_available()
    if name not in (None, "cpu", "cuda") or (name == "cuda" and not gpu):
        raise UserError(f"--device {name} is not here", f"expected {'cpu or cuda' if gpu else 'cpu'}")
    return torch.device(name or ("cuda" if gpu else "cpu"))


def heading(args: argparse.Namespace, what: str) -> str:
    """The first lines of a report: what was measured, the command, and the machine."""
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(
        r"^model name\s*:\s*(.*\S)", cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else "", re.MULTILINE
    )
    processor = named[1] if named else platform.processor() or platform.machine()
    runs_on = "1 thread" if args.device.type == "cpu" else torch.cuda.get_device_name(args.device)
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    machine = f"{processor}, {os.cpu_count()} cores, {runs_on}, {versions}"
    return f"{what}\ncommand: {args.command}\nmachine: {machine}\n"
