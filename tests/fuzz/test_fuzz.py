"""150 malformed inputs, the same every time, and those that failed once. `make fuzz` runs new ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forked import Forked, Outcome
from tests.fuzz.campaign import kept
from tests.fuzz.case import Case
from tests.world import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the harness waits for children as Linux offers it")


def campaign(*options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a child may be forked only from a process without threads."""
    return subprocess.run([sys.executable, "-m", "tests.fuzz", *options], cwd=ROOT, capture_output=True, text=True)


def test_malformed_inputs() -> None:
    done = campaign("--stable", "--cases", "30")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_commands_succeed_on_sound_files() -> None:
    """Otherwise they would stop before they read what is damaged."""
    done = campaign("--sound")
    assert done.returncode == 0, done.stdout + done.stderr


def test_kept_cases_are_written_as_they_are_read() -> None:
    for name, case in kept():
        assert Case.from_json(case.to_json()) == case, name


# ---- the harness


def ends_with(code: int, text: str = "") -> Callable[[], int]:
    def command() -> int:
        sys.stderr.write(text)
        return code

    return command


def raises() -> None:
    raise KeyError("x")


def takes_memory() -> int:
    return len(bytearray(b"x") * (1800 * 2**20)) * 0


def leaves_a_file() -> None:
    (Path(tempfile.gettempdir()) / "left-1").touch()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (ends_with(0), None),
        (ends_with(2, "error: r is -1; give at least 1\n"), None),
        (ends_with(1, "error: a process is gone; see its output\n"), None),
        (ends_with(2), "code 2 with 0 lines 'error: …'"),
        (ends_with(0, "error: a; b\n"), "code 0 with 1 lines 'error: …'"),
        (ends_with(2, "error: no advice\n"), "a message without '; what would be right'"),
        (ends_with(2, "error: a\n b; c\n"), "a message without '; what would be right'"),
        (ends_with(2, "error: a; b\n and more\n"), "a message of more than one line"),
        (ends_with(2, "error: \x1b[2J; b\n"), "a message with control characters"),
        (ends_with(3), "code 3"),
        (raises, "traceback: KeyError in tests/fuzz/test_fuzz.py:raises"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "code -9"),
        pytest.param(lambda: time.sleep(30), "hang", marks=pytest.mark.slow),
        pytest.param(takes_memory, "memory", marks=pytest.mark.slow),
        (leaves_a_file, "left behind: tmp/left-N"),
    ],
)
def test_every_problem_is_found(tmp_path: Path, command: Callable[[], object], problem: str | None) -> None:
    found = Forked(command, tmp_path).wait(1.0 if problem == "hang" else 20.0).problem
    assert found == problem


def test_what_a_command_prints_is_kept(tmp_path: Path) -> None:
    def command() -> None:
        print("one")
        os.system("echo two; echo three >&2")

    outcome = Forked(command, tmp_path).wait()
    assert isinstance(outcome, Outcome)
    assert (outcome.out, outcome.err) == ("two\none\n", "three\n")


def test_a_changed_file_of_the_user_is_found(tmp_path: Path) -> None:
    case = Case("outputs", "report", (), changes=(("kept", "precious"), ("pipe", "pipe"), ("link", "link", "kept")))
    tmp_path.joinpath("case").mkdir()
    case.prepare(tmp_path, tmp_path / "case")
    assert case.lost(tmp_path / "case") == ()
    (tmp_path / "case" / "link").write_text("")
    (tmp_path / "case" / "pipe").unlink()
    assert case.lost(tmp_path / "case") == ("kept", "pipe")
    assert Outcome(0, "", "", 0, lost=("kept",)).problem == "lost: kept"
