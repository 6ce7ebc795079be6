"""Memory of a process and time of a training step: a base that is replicated, sharded, or in 4 bits.

The files of the base are in bfloat16. It is trained with in float32, or in nf4 (bitsandbytes) with products in float32.
The memory is the peak of what a process has for itself, from before the base is loaded: mapped files do not count. On a
CPU it is sampled every 2 ms, and the blocks are checkpointed, so that activations are small. Then the bases take steps
in turn, in the same processes. A step includes the reduction of gradients and the optimizer. A sharded base needs two
processes or more. `plan` is the share of the process, what is outside the blocks, three blocks, and what a process with
a replicated base needs besides its base.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import platform
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from tools.cli import whole_number

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import distributed, multiprocessing, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from actions.run.console import say, set_log_level
from benchmarks import measure, subjects
from dataset.spec import DatasetSpec
from heterolora.common.checks import present
from heterolora.common.errors import UserError
from heterolora.elements.adapt import adapt, placement_of
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Loss
from model import family
from model.checkpoint import BaseSource
from model.load import enable_gradient_checkpointing, load_base, load_config
from model.sharding import Sharding, shard
from model.skeleton import skeleton
from model.task.window import Window
from options.ranges import at_least
from tools.planning.base import Base, base_of, packed_layers
from tools.planning.plan import BLOCKS_AT_ONCE

SPEC = DatasetSpec("random", "classification", ("sentence",), ("accuracy",), labels=("no", "yes"))
TASK, PRECISION = "classification", "32"
MEBI = 2**20
_MMAP_THRESHOLD = -3  # of mallopt
_TINY = {"hidden_size": 64, "layers": 2}


@dataclass(frozen=True)
class Mode:
    """How the base is held."""

    name: str
    quantize: str | None
    sharded: bool


MODES = (
    Mode("replicated", None, False),
    Mode("sharded", None, True),
    Mode("nf4", "nf4", False),
    Mode("sharded nf4", "nf4", True),
)


@dataclass(frozen=True)
class Sample:
    """What one process measured in one mode. `trained` holds the elements after the last step."""

    loading: int  # peak bytes while the base is loaded
    training: int  # peak bytes in the steps
    trained: torch.Tensor


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=5, hidden_size=512, layers=8, rows=1)
    number = whole_number(at_least(1))
    parser.add_argument(
        "--processes", type=number, nargs="+", default=[1, 2, 4], metavar="N", help="numbers of processes (1 2 4)"
    )


def run(args: argparse.Namespace) -> None:
    set_log_level("warning")
    say(measure.heading(args, "memory of a process and time of a training step"))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="MiB of a process, and its seconds of a step")
    for name in ("base", "pro-\ncesses", "share", "peak:\nloading", "peak:\ntraining", "plan", "seconds", "ratio"):
        table.add_column(name, no_wrap=True)
    equal = compared = 0
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tiny:
        for path, more in ((folder, {}), (tiny, _TINY)):
            made = subjects.base(argparse.Namespace(**{**vars(args), "device": "cpu", **more}))
            made.bfloat16().save_pretrained(path)
        sizes = {mode.quantize: _sizes(folder, mode.quantize) for mode in _modes(2)}
        for processes in args.processes:
            results, seconds = _measured(processes, folder, tiny, args)
            for mode in _modes(processes):
                replicated = next(other for other in MODES if other.quantize == mode.quantize and not other.sharded)
                rest = _peak(results[replicated.name]) - sizes[mode.quantize].whole
                _add_row(table, mode, results[mode.name], sizes[mode.quantize], rest, seconds)
                if mode.sharded:
                    pairs = zip(results[mode.name], results[replicated.name], strict=True)
                    equal += sum(torch.equal(one.trained, other.trained) for one, other in pairs)
                    compared += processes
            table.add_section()
    for quantize, base in sizes.items():
        sizes_of = (base.whole, base.block, base.outside, base.constants)
        whole, block, outside, scales = (f"{size / MEBI:.1f} MiB" for size in sizes_of)
        scales = f", scales {scales}" if quantize else ""
        say(f"base in {quantize or 'float32'}: {whole}, of it a block {block}, outside the blocks {outside}{scales}")
    say(table)
    say(f"trained weights of a process, sharded and replicated: bit for bit equal in {equal} of {compared} cases")


def _modes(processes: int) -> list[Mode]:
    """Those that so many processes can have, with the packages that are installed."""
    packages = all(importlib.util.find_spec(name) is not None for name in ("bitsandbytes", "accelerate"))
    return [mode for mode in MODES if (processes > 1 or not mode.sharded) and (packages or mode.quantize is None)]


def _sizes(folder: str, quantize: str | None) -> Base:
    config = load_config(folder, SPEC)
    config.dtype = torch.float32
    network = skeleton(config, TASK)
    space = _adapt(network)
    return base_of(network, space, packed_layers(network, quantize, PRECISION), PRECISION)


def _peak(results: Sequence[Sample]) -> int:
    return max(each.training for each in results)


def _add_row(
    table: Table, mode: Mode, results: Sequence[Sample], base: Base, rest: int, seconds: measure.Seconds
) -> None:
    """`rest`: bytes that a process with a replicated base has besides the base."""
    share = base.whole
    if mode.sharded:
        share = (base.whole - base.constants) // len(results) + base.constants
    planned = _mebi(share + base.outside + BLOCKS_AT_ONCE * base.block + rest) if mode.sharded else ""
    peaks = (max(each.loading for each in results), _peak(results))
    ratio = seconds.ratio(mode.name, MODES[0].name)
    times = (f"{seconds.spread(mode.name).median:.2f}", f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})")
    table.add_row(mode.name, str(len(results)), *map(_mebi, (share, *peaks)), planned, *times)


def _mebi(size: int) -> str:
    return f"{size / MEBI:.0f}"


def _measured(
    processes: int, folder: str, tiny: str, args: argparse.Namespace
) -> tuple[Mapping[str, list[Sample]], measure.Seconds]:
    """What each process measured in each mode, and the seconds of the first process."""
    with tempfile.TemporaryDirectory() as meeting:
        arguments = (processes, folder, tiny, meeting, args)
        multiprocessing.start_processes(_process, arguments, nprocs=processes, start_method="spawn")
        found = [torch.load(Path(meeting) / f"{rank}.pt", weights_only=False) for rank in range(processes)]
    return {mode.name: [results[mode.name] for results, _ in found] for mode in _modes(processes)}, found[0][1]


def _process(rank: int, processes: int, folder: str, tiny: str, meeting: str, args: argparse.Namespace) -> None:
    set_log_level("warning")
    torch.set_num_threads(1)
    on_gpu = args.device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(rank)
    distributed.init_process_group(
        "nccl" if on_gpu else "gloo", f"file://{meeting}/meet", timedelta(minutes=10), processes, rank
    )
    device = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    results, steps, spaces = {}, {}, {}
    for mode in _modes(processes):
        for path in (tiny, folder):  # libraries allocate memory of their own at the first use
            with _freed_at_once(), Peak(device) as peak:
                network, spaces[mode.name] = _load(path, mode, processes, device)
                loading = peak.take()
                optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3)
                steps[mode.name] = partial(_step, network, optimizer, args, device)
                for _ in range(2):
                    steps[mode.name]()
                results[mode.name] = (loading, peak.take())
    seconds = measure.by_turns(steps, args.rounds, device, warm_up=0, seconds_of=lambda step: step())
    trained = {
        name: torch.cat([p.detach().flatten().cpu() for p in space.parameters]) for name, space in spaces.items()
    }
    found = {name: Sample(*peaks, trained[name]) for name, peaks in results.items()}
    torch.save((found, seconds), Path(meeting) / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@contextmanager
def _freed_at_once() -> Iterator[None]:
    """Memory that is freed goes back to the system, so that peaks are of what is in use. This makes steps slower."""
    glibc = platform.libc_ver()[0] == "glibc"
    if glibc:
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**14)
    try:
        yield
    finally:
        if glibc:
            ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**25)


def _load(folder: str, mode: Mode, processes: int, device: torch.device) -> tuple[nn.Module, SearchSpace]:
    """The adapted base, as the program loads it."""
    config, vocabulary = load_config(folder, SPEC), WordLevel({"<unk>": 0, "<pad>": 1}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(vocabulary), pad_token="<pad>")
    base = load_base(BaseSource(folder), config, tokenizer, TASK, PRECISION, mode.quantize, sharded=mode.sharded)
    network = base.network
    space = _adapt(network)
    enable_gradient_checkpointing(network, space)
    if mode.sharded:
        shard(network, space, Sharding(processes, torch.float32, mode.quantize is not None), device)
    return nn.Module.to(network, device).train(), space


def _adapt(network: PreTrainedModel) -> SearchSpace:
    torch.manual_seed(1)
    return adapt(network, placement_of(network, family.get("opt"), subjects.lora(8, subjects.QV)))


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, args: argparse.Namespace, device: torch.device
) -> float:
    """Train on a batch, and return the seconds of the step: on a CPU, the CPU time of the process."""
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
        return 1024 * int(present(re.search(r"RssAnon:\s+(\d+)", status.read_text(encoding="utf-8"))).group(1))
