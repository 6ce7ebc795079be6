"""Forks processes that work together, as torchrun starts them, but without importing everything again."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import distributed

from tests.forked import _forget_exit_functions
from tests.world import metrics_of, run, same_weights

STRATEGIES = ("ddp", "fsdp")
SECONDS = 600  # until the processes count as hanging


def together(world: int, function: Callable[..., Any], *arguments: Any, nodes: int = 1) -> list[Any]:
    """What `function` returns in each of `world` processes, which see themselves on `nodes` machines.

    Fails with the output of all of them if one of them fails.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, port, children = Path(name), free_port(), []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                _work(_environment(rank, world, world // nodes, port), folder, function, arguments)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.txt")))
        assert codes == [0] * world, said
        return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world)]


def run_commands(commands: Sequence[Sequence[object]]) -> None:
    """Commands of the program, one after the other in these processes."""
    for command in commands:
        assert run(*command) == 0, command


def both(*arguments: object) -> list[list[object]]:
    """The command with a replicated and with a sharded base. The projects have the names of the strategies."""
    return [[*arguments, "--num-devices", 2, "--strategy", strategy, "--project", strategy] for strategy in STRATEGIES]


def assert_same(runs: Path) -> None:
    ours, theirs = (runs / strategy for strategy in STRATEGIES)
    assert same_weights(ours / "checkpoints/last.ckpt", theirs / "checkpoints/last.ckpt")
    assert metrics_of(ours) == metrics_of(theirs)
    a, b = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (ours, theirs))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def _environment(rank: int, world: int, per_node: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank % per_node, "GROUP_RANK": rank // per_node}
    sizes = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": per_node, "MASTER_PORT": port}
    names = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "tests"}
    return {**{name: str(value) for name, value in (ranks | sizes).items()}, **names}


def _work(environment: dict[str, str], folder: Path, function: Callable[..., Any], arguments: Any) -> None:
    code, rank = 1, environment["RANK"]
    try:
        _forget_exit_functions()
        output = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        signal.alarm(SECONDS)
        torch.set_num_threads(1)
        os.environ.update(environment)
        (folder / rank).write_bytes(pickle.dumps(function(*arguments)))
        if distributed.is_initialized():
            distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
