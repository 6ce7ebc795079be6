"""Processes that torchrun or SLURM has started: their number, which of them is the first, and the end of their job."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment

from actions.run import launcher
from actions.run.console import is_first_of_node, is_first_process
from actions.run.endings import LOST, end_with_this_process, ended, terminate
from actions.run.launcher import Launcher
from actions.run.processes import check_processes, cluster_environment
from actions.run.requeue import requeued_if_stopped
from heterolora.common.errors import UserError
from options.devices import DeviceOptions
from options.run import RunOptions

BATCH = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "job", "SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}
STEP = {**BATCH, "SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
ONE_TASK = {**BATCH, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("SLURM_") or name in (*TORCHRUN, "NODE_RANK"):
            monkeypatch.delenv(name)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "found", "expected"),
    [
        (TORCHRUN, 1, 1, "torchrun has started 2 processes on each of 2 nodes", "--num-nodes 2 --num-devices 2"),
        (TORCHRUN, 1, 4, "--num-nodes 1 --num-devices 4", "--num-nodes 2 --num-devices 2"),
        ({**ONE_TASK, **TORCHRUN}, 1, 1, "torchrun", "--num-nodes 2 --num-devices 2"),
        (STEP, 1, 2, "SLURM has started 2 processes on each of 2 nodes", "--num-nodes 2 --num-devices 2"),
        (BATCH, 2, 2, "the SLURM job has 4 tasks, and srun has not started them", "srun before python"),
        ({}, 2, 1, "--num-nodes 2, and nothing has started the other nodes", "torchrun or srun"),
        ({**BATCH, "SLURM_STEP_ID": "0"}, 2, 2, "--ntasks=4", "--ntasks-per-node=2"),
        ({**ONE_TASK, "SLURM_STEP_ID": "0", "SLURM_NTASKS_PER_NODE": "1"}, 2, 1, "SLURM", "--num-nodes 1"),
    ],
)
def test_another_number_of_processes(monkeypatch, variables, nodes, devices, found: str, expected: str) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(UserError) as error:
        check_processes(DeviceOptions(num_nodes=nodes, num_devices=devices))
    assert found in error.value.found
    assert expected in error.value.expected


@pytest.mark.parametrize(
    ("variables", "nodes", "devices", "kind"),
    [
        ({}, 1, 2, type(None)),
        (TORCHRUN, 2, 2, type(None)),
        ({**ONE_TASK, **TORCHRUN}, 2, 2, type(None)),
        (STEP, 2, 2, SLURMEnvironment),
        ({"MASTER_ADDR": "here", "NODE_RANK": "1"}, 2, 1, type(None)),
        (ONE_TASK, 1, 1, LightningEnvironment),
        (ONE_TASK, 1, 2, LightningEnvironment),  # which starts the second process
        ({**BATCH, "SLURM_JOB_NAME": "interactive"}, 1, 2, type(None)),
    ],
)
def test_the_right_number_of_processes(monkeypatch, variables, nodes: int, devices: int, kind: type) -> None:
    set_all(monkeypatch, variables)
    check_processes(DeviceOptions(num_nodes=nodes, num_devices=devices))
    assert isinstance(cluster_environment(), kind)


@pytest.mark.parametrize(
    ("variables", "of_all", "of_node"),
    [
        ({}, True, True),
        ({"NODE_RANK": "1"}, False, True),
        ({"LOCAL_RANK": "1"}, False, False),
        ({**STEP, "SLURM_PROCID": "2"}, False, True),
        ({**STEP, "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, False, False),
        ({**TORCHRUN, "SLURM_PROCID": "1"}, True, True),  # torchrun does not number the nodes as SLURM does
        ({**TORCHRUN, "SLURM_PROCID": "0", "RANK": "2"}, False, True),
    ],
)
def test_the_first_process(monkeypatch, variables: dict[str, str], of_all: bool, of_node: bool) -> None:
    set_all(monkeypatch, variables)
    assert (is_first_process(), is_first_of_node()) == (of_all, of_node)


@pytest.mark.parametrize(("program", "code", "line"), [("false", 1, f"error: {LOST}\n"), ("true", 0, "")])
def test_another_process_that_ends_before_this_one_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], program: str, code: int, line: str
) -> None:
    monkeypatch.setattr(launcher, "_PATIENCE", 0.1)
    child = os.fork()
    if child == 0:
        launcher._watch([subprocess.Popen([program])])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert capfd.readouterr().err == line


def test_a_later_trainer_ends_the_processes_that_the_first_one_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--learning-rate auto` has a trainer for each trial. Later ones start no processes."""
    monkeypatch.setattr(launcher, "_started", [])
    monkeypatch.setattr(launcher, "_set_num_threads_if_needed", lambda num_processes: None)
    monkeypatch.setattr(launcher, "_watch", lambda others: None)
    made = [Launcher(SimpleNamespace(creates_processes_externally=later), 2, 1) for later in (False, True)]
    sleeping = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(made[0], "_call_children_scripts", lambda: made[0].procs.append(sleeping))
    for one in made:
        one.launch(lambda: None)

    def fail() -> None:
        end_with_this_process(made[1])
        raise UserError("x is wrong", "give y")

    try:
        assert ended(fail) == 2
        assert sleeping.wait(10) == -signal.SIGKILL
    finally:
        sleeping.kill()


class TestRequeue:
    """A stand-in for `scontrol` shows a state of the job, and notes what it is asked."""

    @pytest.fixture
    def asked(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        set_all(monkeypatch, ONE_TASK)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return tmp_path / "asked"

    @staticmethod
    def scontrol(asked: Path, state: str = '{"jobs": [{"job_state": ["RUNNING"]}]}', requeue: str = "exit 0") -> None:
        script = asked.with_name("scontrol")
        script.write_text(
            f"#!/bin/sh\nif [ $1 = show ]; then echo '{state}'; else echo $1 $2 >> {asked}; {requeue}; fi\n"
        )
        script.chmod(0o755)

    @staticmethod
    def stop(sent: int) -> None:
        earlier = signal.getsignal(signal.SIGUSR1)
        stopped = terminate if sent == signal.SIGTERM else partial(os.kill, os.getpid(), sent)
        with pytest.raises(SystemExit), requeued_if_stopped(RunOptions(auto_requeue=True)):
            stopped()
        assert signal.getsignal(signal.SIGUSR1) == earlier

    @pytest.mark.parametrize("state", ["", "[1]", "{}", '{"jobs": [{"job_state": "RUNNING"}]}'])
    def test_sigusr1_outside_training(self, asked: Path, state: str) -> None:
        self.scontrol(asked, state)
        self.stop(signal.SIGUSR1)
        assert asked.read_text() == "requeue 7\n"

    def test_not_of_a_cancelled_job(self, asked: Path, capsys) -> None:
        self.scontrol(asked, '{"jobs": [{"job_state": ["CANCELLED", "COMPLETING"]}]}')
        self.stop(signal.SIGUSR1)
        assert not asked.exists()
        assert capsys.readouterr().out == ""

    def test_not_after_sigterm_which_slurm_sends_when_another_process_fails(self, asked: Path) -> None:
        self.scontrol(asked)
        self.stop(signal.SIGTERM)
        assert not asked.exists()

    def test_that_is_refused(self, asked: Path, capsys) -> None:
        self.scontrol(asked, requeue="echo Requested operation is presently disabled >&2; exit 1")
        self.stop(signal.SIGUSR1)
        assert capsys.readouterr().out == (
            "note: SLURM did not requeue job 7 (Requested operation is presently disabled): submit it again, with "
            "--resume-training\n"
        )

    def test_without_scontrol(self, asked: Path, capsys, monkeypatch) -> None:
        monkeypatch.setenv("PATH", str(asked.parent))
        self.stop(signal.SIGUSR1)
        assert "(scontrol: No such file or directory)" in capsys.readouterr().out
