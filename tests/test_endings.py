"""Every way in which a command ends has its exit code, and what stops it from outside gives no traceback."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actions import imp_test, train
from actions.result import results
from actions.run.endings import LOST, ended
from actions.run.run_folder import Run
from actions.training.checkpoints import RunCheckpoints
from heterolora.common.errors import UserError
from heterolora.common.files import cannot_write
from model.task.fine_tuning import FineTuning
from options.run import RunOptions
from tests.world import ROOT, World, command, run

#: The program, whose first process stops at the first batch of a test.
SLOW = """
import os, pathlib, sys, time
from main import main
from model.task.fine_tuning import FineTuning

def stop(*_):
    process = os.environ.get("LOCAL_RANK", "0")
    pathlib.Path(__file__).with_suffix(f".{process}").touch()
    time.sleep(600 if process == "0" else 0)

FineTuning.on_test_batch_start = stop
sys.exit(main(sys.argv[1:]))
"""
#: The program on a disk that is full after the first checkpoint.
FULL = """
import errno, os, sys
import torch
from main import main
save = torch.save

def save_and_fill(*contents):
    save(*contents)
    torch.save = fail

def fail(*contents):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

torch.save = save_and_fill
sys.exit(main(sys.argv[1:]))
"""
TWO = ("--num-devices", 2)


def _interrupt_as_lightning_does() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def _raising(reason: BaseException) -> Callable[..., None]:
    def stop(*_: object, **__: object) -> None:
        raise reason

    return stop


def _converted(failure: OSError) -> None:
    try:
        raise failure
    except OSError:
        raise cannot_write("", failure) from failure


def _terminate(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_command_that_continues_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = RunCheckpoints(Run(tmp_path / "my run", None), "accuracy", "max", RunOptions())
    checkpoints.folder.mkdir(parents=True)
    checkpoints.last.write_text("")
    task = SimpleNamespace(record=SimpleNamespace(action="train"))
    checkpoints.on_exception(SimpleNamespace(), task, KeyboardInterrupt())
    assert shlex.split(capsys.readouterr().out)[-2:] == ["--load", str(checkpoints.last)]


class TestCodes:
    @pytest.mark.parametrize(
        ("stop", "code"),
        [
            (lambda: None, 0),
            (lambda: sys.exit(0), 0),
            (lambda: sys.exit(3), 3),
            (_raising(KeyboardInterrupt()), 130),
            (_interrupt_as_lightning_does, 130),
            (_raising(BrokenPipeError()), 141),
            (_terminate, 143),
        ],
    )
    def test_of_a_quiet_end(self, capfd, stop: Callable[[], None], code: int) -> None:
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert ended(stop) == code
        assert capfd.readouterr() == ("", "")
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers

    def test_of_a_full_disk(self, capfd) -> None:
        assert ended(_raising(OSError(errno.ENOSPC, "No space left on device", "/runs/a/events"))) == 2
        said = "error: cannot write '/runs/a/events' (No space left on device); free space, or give a folder on another"
        assert capfd.readouterr().err.startswith(said)

    @pytest.mark.parametrize(
        ("variables", "mistake", "loss"),
        [
            ({}, True, True),
            ({"NODE_RANK": "1"}, True, True),  # another node may have other files
            ({"LOCAL_RANK": "1"}, False, False),  # the process that started it prints the line
            ({"LOCAL_RANK": "1", "RANK": "1", "TORCHELASTIC_RUN_ID": "x"}, False, True),
            ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, False, True),
            ({"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, True, True),
        ],
    )
    def test_which_processes_print_the_line(self, capfd, monkeypatch, variables, mistake: bool, loss: bool) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert ended(_raising(UserError("x is wrong", "give y"))) == 2
        assert capfd.readouterr().err == ("error: x is wrong; give y\n" if mistake else "")
        assert ended(_raising(RuntimeError("[gloo] Connection closed by peer [127.0.0.1]:1"))) == 1
        assert capfd.readouterr().err == (f"error: {LOST}\n" if loss else "")

    @pytest.mark.parametrize(
        ("reason", "code", "line"),
        [
            (torch.OutOfMemoryError("CUDA out of memory."), 1, "the memory of the GPU is full; use a smaller"),
            (OSError(errno.ENOSPC, "No space left on device", "x"), 2, "cannot write 'x' (No space left on device);"),
        ],
    )
    @pytest.mark.parametrize(
        ("variables", "where"),
        [
            ({"LOCAL_RANK": "0"}, ""),
            ({"LOCAL_RANK": "1"}, "local rank 1: "),
            ({"LOCAL_RANK": "3", "RANK": "7", "TORCHELASTIC_RUN_ID": "x"}, "local rank 3: "),
            ({"SLURM_PROCID": "5", "SLURM_LOCALID": "1"}, "local rank 1: "),
        ],
    )
    def test_a_failure_of_one_process_names_it(self, capfd, monkeypatch, variables, where, reason, code, line) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        assert ended(_raising(reason)) == code
        assert capfd.readouterr().err.startswith(f"error: {where}{line}")
        full = OSError(errno.ENOSPC, "No space left on device")
        assert ended(partial(_converted, full)) == 2  # as the writers of files and `EndTogether` convert it
        assert capfd.readouterr().err.startswith(f"error: {where}cannot write (No space left on device);")

    def test_of_a_full_gpu(self, capfd) -> None:
        assert ended(_raising(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB."))) == 1
        said = "error: the memory of the GPU is full; use a smaller --batch-size, --gradient-checkpointing or"
        assert capfd.readouterr().err.startswith(said)

    def test_other_exceptions_are_raised(self) -> None:
        for reason in (RuntimeError("a fault"), OSError(errno.ENOENT, "No such file", "x"), ZeroDivisionError()):
            with pytest.raises(type(reason)):
                ended(_raising(reason))


@pytest.mark.parametrize(("stop", "code"), [(_raising(KeyboardInterrupt()), 130), (_terminate, 143)])
class TestActions:
    """A command that is stopped while it loads the model, trains, measures or scores."""

    @pytest.mark.parametrize(
        ("action", "owner", "name"),
        [
            ("train", train, "build"),
            ("train", results, "version"),
            ("test", results, "version"),
            ("imp-test", imp_test, "build"),
            ("imp-test", imp_test, "scored"),
        ],
    )
    def test_outside_training(self, world: World, monkeypatch, capfd, action, owner, name, stop, code: int) -> None:
        monkeypatch.setattr(owner, name, stop)
        project = f"stopped-{action}-{name}-{code}"
        short = ("--max-epochs", 1, "--limit-train-batches", 1) if action == "train" else ()
        _, *rest = world.training()
        rest = [part for part in rest if action == "train" or part not in ("--learning-rate", "0.01")]
        assert run(action, *rest, *short, "--project", project) == code
        assert capfd.readouterr().err == ""
        assert (world.runs / project).exists() == (owner is results)

    def test_in_training(self, world: World, monkeypatch, capfd, stop, code: int) -> None:
        monkeypatch.setattr(FineTuning, "on_train_batch_start", stop, raising=False)
        project = f"stopped-{code}"
        assert run(*world.training("--max-epochs", 1, "--project", project)) == code
        said = capfd.readouterr()
        last = world.checkpoint(project)
        assert said.out.count(f"stopped; to continue: python -m main train --resume-training --load {last}\n") == 1
        assert said.err == ""
        assert last.is_file()


class TestProcesses:
    """Real processes, whose launcher, reader or terminal stops them."""

    @pytest.mark.slow
    def test_ctrl_c_ends_both(self, world: World, tmp_path: Path) -> None:
        """A terminal sends SIGINT to all processes of a command."""
        started = start(*world.training("--project-dir", tmp_path, "--project", "run", "--max-epochs", 500, *TWO))
        wait_for(lambda: (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file(), started)
        children = children_of(started)
        os.killpg(started.pid, signal.SIGINT)
        said, errors = started.communicate(timeout=120)
        assert (started.returncode, errors) == (130, "")
        assert said.count("stopped") == 1
        assert children
        wait_for_end(children)

    @pytest.mark.slow
    def test_sigterm_while_two_processes_test(self, world: World, tmp_path: Path) -> None:
        """Only the first process gets the signal. The other one waits for it in a collective, and ends with it."""
        program = tmp_path / "slow.py"
        program.write_text(SLOW)
        shared = ("opt_lora", "sst2", "--load", world.opt, "--pretrained", "--dataset-saved-path", world.sst2)
        arguments = ("test", *shared, "--project-dir", tmp_path, "--project", "run", *TWO)
        started = start(*arguments, program=(program,))
        wait_for(program.with_suffix(".0").is_file, started)
        wait_for(program.with_suffix(".1").is_file, started)
        children = children_of(started)
        started.terminate()
        _, errors = started.communicate(timeout=120)
        assert (started.returncode, errors) == (143, "")
        wait_for_end(children)

    @pytest.mark.slow
    def test_a_closed_pipe_ends_both(self, world: World, tmp_path: Path) -> None:
        started = start(*world.training("--project-dir", tmp_path, "--project", "run", "--max-epochs", 500, *TWO))
        while "epoch 1," not in started.stdout.readline():
            assert started.poll() is None, started.stderr.read()
        started.stdout.close()
        errors = started.stderr.read()
        assert (started.wait(timeout=120), errors) == (141, "")

    @pytest.mark.slow
    def test_a_full_disk_ends_both_in_one_line(self, world: World, tmp_path: Path) -> None:
        """Only the first process writes."""
        program = tmp_path / "full.py"
        program.write_text(FULL)
        arguments = world.training("--project-dir", tmp_path, "--project", "run", "--max-epochs", 2, *TWO)
        _, errors = start(*arguments, program=(program,)).communicate(timeout=1200)
        checkpoints = tmp_path / "run" / "checkpoints"
        assert errors.startswith(f"error: cannot write '{checkpoints / 'best.ckpt'}' (No space left on device); ")
        assert errors.count("\n") == 1
        assert [path.name for path in checkpoints.iterdir()] == ["last.ckpt"]

    def test_output_that_only_fails_when_it_is_flushed(self) -> None:
        read, closed = os.pipe()
        os.close(read)
        listing = [sys.executable, "-m", "benchmarks"]
        full = "error: cannot write (No space left on device); free space, or give a folder on another disk\n"
        for output, ending in ((closed, (141, "")), (os.open("/dev/full", os.O_WRONLY), (2, full))):
            finished = subprocess.run(listing, cwd=ROOT, stdout=output, stderr=subprocess.PIPE, text=True)
            os.close(output)
            assert (finished.returncode, finished.stderr) == ending


def start(*arguments: object, program: Sequence[object] = ("-m", "main")) -> subprocess.Popen[str]:
    """The program as the first process of its own group, in which Ctrl-C works even if it does not here."""
    return subprocess.Popen(
        [sys.executable, *program, *command(*arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def children_of(process: subprocess.Popen[str]) -> list[int]:
    threads = Path(f"/proc/{process.pid}/task").glob("*/children")
    return [int(child) for children in threads for child in children.read_text().split()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 1200.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def wait_for_end(processes: list[int], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.05)
