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
from torch import distributed

from tests.forked import _forget_exit_functions
from tests.world import run

SECONDS = 240  # until the processes count as hanging


def together(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function` returns in each of `world` processes. Fails with their output if one of them fails."""
    with tempfile.TemporaryDirectory() as name:
        folder, port, children = Path(name), _free_port(), []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                _work(rank, world, port, folder, function, arguments)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.txt")))
        assert codes == [0] * world, said
        return [pickle.loads((folder / str(rank)).read_bytes()) for rank in range(world)]


def run_commands(commands: Sequence[Sequence[object]]) -> list[int]:
    """The exit codes of commands of the program, one after the other in these processes."""
    return [run(*command) for command in commands]


def _work(rank: int, world: int, port: int, folder: Path, function: Callable[..., Any], arguments: Any) -> None:
    code = 1
    try:
        _forget_exit_functions()
        output = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT)
        for number in (1, 2):
            os.dup2(output, number)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)  # noqa: SIM115
        signal.alarm(SECONDS)
        torch.set_num_threads(1)
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="tests",
        )  # fmt: skip
        (folder / str(rank)).write_bytes(pickle.dumps(function(*arguments)))
        if distributed.is_initialized():
            distributed.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
