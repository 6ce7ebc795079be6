"""Two nodes: two agents of torchrun on this machine, one of which is lost in the middle of a run."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from actions.run.endings import LOST
from heterolora.choosing.history import HISTORY
from tests.test_endings import children_of, wait_for_end
from tests.test_processes import steps_of
from tests.together import free_port, run_commands, together
from tests.world import ROOT, World, command, same_weights, write_lora

SOON = 60  # seconds in which the other node must end
SLOW = 600  # seconds in which nodes start on a busy machine


class Node:
    """One `torchrun`, with one process. What this process prints goes into files."""

    def __init__(self, rank: int, port: int, logs: Path, *arguments: object) -> None:
        launcher = ("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}")
        launcher += ("--master-addr=127.0.0.1", f"--master-port={port}", "--redirects=3", f"--log-dir={logs}")
        self.logs, self.workers = logs, []
        self.agent = subprocess.Popen(
            [sys.executable, *launcher, "-m", "main", *command(*arguments, "--num-nodes", 2)],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def is_running(self) -> bool:
        self.workers = self.workers or children_of(self.agent)
        return self.agent.poll() is None

    def end(self, seconds: float) -> int:
        """The exit code of the agent, which must end within so many seconds."""
        self.agent.communicate(timeout=seconds)
        return self.agent.returncode

    @property
    def errors(self) -> str:
        return "".join(path.read_text() for path in self.logs.rglob("stderr.log"))

    def kill(self) -> None:
        for process in (self.agent.pid, *self.workers):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.agent.communicate()


class Nodes:
    """Starts pairs of nodes, and kills what is left of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.all = folder, []

    def start(self, *arguments: object) -> list[Node]:
        port, first = free_port(), len(self.all)
        pair = [Node(rank, port, self.folder / str(first + rank), *arguments) for rank in (0, 1)]
        self.all += pair
        return pair


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    started = Nodes(tmp_path / "logs")
    yield started
    for node in started.all:
        node.kill()


@pytest.mark.slow
@pytest.mark.timeout(3 * SLOW)
@pytest.mark.parametrize("lost", [pytest.param(0, id="first node"), pytest.param(1, id="second node")])
def test_a_lost_node_ends_the_other_in_one_line(world: World, tmp_path: Path, nodes: Nodes, lost: int) -> None:
    """Only the agent gets SIGKILL. Its process ends with it."""
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1", lora_dropout=0.1)
    _, _, *rest = world.training("--lora-config", lora, "--project-dir", tmp_path, "--batch-size", 2)
    search = ("train-dyrealloc", "opt_lora", *rest, "--realloc-N", 5, "--imp-limit-test-batches", 2)
    search += ("--checkpoint-every-n-steps", 1, "--max-epochs", 1000)
    pair = nodes.start(*search, "--project", "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    until = time.monotonic() + SLOW
    while steps_of(last) < 20:
        assert all(node.is_running() for node in pair), [node.errors for node in pair]
        assert time.monotonic() < until, "it did not begin"
        time.sleep(0.1)
    gone, other = pair[lost], pair[1 - lost]
    assert gone.workers
    gone.agent.kill()
    assert other.end(SOON) == 1
    assert other.errors == f"error: {LOST}\n"
    wait_for_end(gone.workers)

    steps = steps_of(last) + 7
    pair = nodes.start("train-dyrealloc", "--resume-training", "--load", last, "--max-steps", steps)
    assert [node.end(SLOW) for node in pair] == [0, 0], [node.errors for node in pair]
    together(2, run_commands, [(*search, "--num-devices", 2, "--project", "whole", "--max-steps", steps)])
    for name in ("last", "best"):
        assert same_weights(last.with_name(f"{name}.ckpt"), tmp_path / "whole" / "checkpoints" / f"{name}.ckpt")
    assert (tmp_path / "run" / HISTORY).read_text() == (tmp_path / "whole" / HISTORY).read_text()
