"""Memory of a process and time of a training step, with a replicated and with a sharded base.

The files of the base are in bfloat16, and it is trained with in float32. Each case runs in new processes. The memory is
the peak of what a process has for itself, from before the base is loaded: mapped files do not count. On a CPU it is
sampled every 2 ms, and the blocks are checkpointed, so that activations are small. The step includes the reduction of
gradients and the optimizer. A sharded base needs two processes or more. `plan` is the share of the process, what is
outside the blocks, three blocks, and what a process with a replicated base needs besides its base.
"""

from __future__ import annotations

import argparse
import ctypes
import platform
import re
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from tools.cli import whole_number

import torch
from rich.table import Table
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F

from actions.console import say, set_log_level
from dataset.option import at_least
from dataset.spec import DatasetSpec
from heterolora.adapt import adapt, plan
from heterolora.errors import UserError
from heterolora.saliency.problem import Loss
from heterolora.search_space import SearchSpace
from model import family
from model.checkpoint import BaseSource
from model.load import enable_gradient_checkpointing, load_base, load_config
from model.sharding import Sharding, shard
from model.task.window import Window
from tools.benchmarks import measure, subjects

SPEC = DatasetSpec("random", "classification", ("sentence",), ("accuracy",), labels=("no", "yes"))
MEBI = 2**20


@dataclass(frozen=True)
class Sizes:
    """Bytes of the base: all of it, of a block, and outside the blocks."""

    base: int
    block: int
    outside: int

    def plan(self, processes: int) -> int:
        """Of the base on a process, if it is sharded: its share, what is outside the blocks, and three blocks."""
        return self.base // processes + self.outside + 3 * self.block


@dataclass(frozen=True)
class Measured:
    """What one process measured. `trained` holds the elements after the last step."""

    loading: int  # peak bytes while the base is loaded
    training: int  # peak bytes in the steps
    seconds: tuple[float, ...]  # of each step
    sizes: Sizes
    trained: torch.Tensor


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=5, hidden_size=512, layers=16, rows=1)
    number = whole_number(at_least(1))
    parser.add_argument(
        "--processes", type=number, nargs="+", default=[1, 2, 4], metavar="N", help="numbers of processes (1 2 4)"
    )


def run(args: argparse.Namespace) -> None:
    set_log_level("warning")
    say(measure.heading(args, "memory of a process and time of a training step"))
    table = Table("base", "processes", "its share", "peak: loading", "peak: training", "plan", "seconds of a step")
    equal = compared = 0
    with tempfile.TemporaryDirectory() as folder:
        subjects.base(argparse.Namespace(**{**vars(args), "device": "cpu"})).bfloat16().save_pretrained(folder)
        for processes in args.processes:
            replicated = _measured(False, processes, folder, args)
            sharded = _measured(True, processes, folder, args) if processes > 1 else []
            sizes, rest = replicated[0].sizes, _peak(replicated) - replicated[0].sizes.base
            _add_row(table, "replicated", replicated, sizes.base, None)
            if sharded:
                _add_row(table, "sharded", sharded, sizes.base // processes, sizes.plan(processes) + rest)
                compared += processes
                pairs = zip(sharded, replicated, strict=True)
                equal += sum(torch.equal(one.trained, other.trained) for one, other in pairs)
    say(f"base {_mebi(sizes.base)}, of it a block {_mebi(sizes.block)}, outside the blocks {_mebi(sizes.outside)}")
    say(table)
    say(f"trained weights of a process, sharded and replicated: bit for bit equal in {equal} of {compared} cases")


def _peak(results: Sequence[Measured]) -> int:
    return max(each.training for each in results)


def _add_row(table: Table, name: str, results: Sequence[Measured], share: int, plan: int | None) -> None:
    loading = max(each.loading for each in results)
    memory = (_mebi(share), _mebi(loading), _mebi(_peak(results)), "" if plan is None else _mebi(plan))
    table.add_row(name, str(len(results)), *memory, str(measure.Spread.of(results[0].seconds)))


def _mebi(size: int) -> str:
    return f"{size / MEBI:.0f} MiB"


def _measured(sharded: bool, processes: int, folder: str, args: argparse.Namespace) -> list[Measured]:
    """What each process measured."""
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (processes, sharded, folder, meeting, args)
        multiprocessing.start_processes(_process, arguments, nprocs=processes, start_method="spawn")
        return [torch.load(Path(meeting) / f"{rank}.pt", weights_only=False) for rank in range(processes)]


def _process(rank: int, processes: int, sharded: bool, folder: str, meeting: str, args: argparse.Namespace) -> None:
    set_log_level("warning")
    torch.set_num_threads(1)
    on_gpu = args.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    elif platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(-3, MEBI)  # freed memory goes back at once, so that peaks are of what is in use
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", f"file://{meeting}/meet", timedelta(minutes=10), processes, rank
    )
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    step = partial(_step, args=args, device=device)
    _warm_up(device)
    with Peak(device) as peak:
        network, space, sizes = _load(folder, processes if sharded else None, device)
        loading = peak.take()
        optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
        seconds = [step(network, optimizer) for _ in range(1 + args.rounds)][1:]
        training = peak.take()
    trained = torch.cat([p.detach().flatten().cpu() for p in space.parameters])
    torch.save(Measured(loading, training, tuple(seconds), sizes, trained), Path(meeting) / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _load(folder: str, shards: int | None, device: torch.device) -> tuple[nn.Module, SearchSpace, Sizes]:
    """The adapted base, as the program loads it."""
    config, tokenizer = load_config(folder, SPEC), SimpleNamespace(pad_token_id=1)
    base = load_base(BaseSource(folder), config, tokenizer, "classification", "32", sharded=shards is not None)
    network = base.network
    torch.manual_seed(1)
    space = adapt(network, plan(network, family.get("opt"), subjects.lora(8, subjects.QV)))
    enable_gradient_checkpointing(network, space)
    sizes = [4 * sum(p.numel() for p in module.parameters()) for module in (network, *space.blocks)]
    if shards is not None:
        shard(network, space, Sharding(shards, torch.float32), device)
    return network.to(device).train(), space, Sizes(sizes[0], sizes[1], sizes[0] - sum(sizes[1:]))


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace, device: torch.device
) -> float:
    """Trains on a batch, and returns the seconds of the step: on a CPU, the CPU time of the process."""
    batch = subjects.batch(argparse.Namespace(**{**vars(args), "device": device}))
    distributed.barrier()
    now, window = measure.clock(device), Window()
    start = now()
    logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    window.start()
    total = F.cross_entropy(logits, batch["labels"], reduction="sum")
    window.add(Loss(total, torch.tensor(float(args.rows), device=device))).backward()
    float(window.finish(optimizer))  # waits for the device
    optimizer.step()
    optimizer.zero_grad()
    return now() - start


def _warm_up(device: torch.device) -> None:
    """Libraries allocate memory of their own at the first use."""
    layer = nn.Linear(8, 8, device=device)
    layer(torch.ones(2, 8, device=device)).sum().backward()
    torch.optim.AdamW(layer.parameters()).step()
    distributed.all_reduce(torch.ones(8, device=device))


class Peak:
    """The peak of this process's own memory, since the start and since the last `take`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Peak:
        self.highest, self.over = 0, threading.Event()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self.start = self._now()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def take(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            highest = torch.cuda.max_memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            highest, self.highest = max(self.highest, self._now()), 0
        return highest - self.start

    def _watch(self) -> None:
        while self.device.type == "cpu" and not self.over.wait(0.002):
            self.highest = max(self.highest, self._now())

    def _now(self) -> int:
        """Bytes of this process; the pages of mapped files can be dropped at any time and do not count."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        status = Path("/proc/self/status")
        if not status.is_file():
            raise UserError("the memory of a process is read from /proc", "run it on Linux")
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8")).group(1))
