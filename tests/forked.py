"""Runs a command in a forked child, with limits on time and memory, and says what was wrong with how it ended."""

from __future__ import annotations

import atexit
import importlib
import os
import re
import resource
import select
import signal
import sys
import tempfile
import traceback
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from actions.run.endings import ended

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("report", "plot_realloc", "realloc_lora_rank", "inspect_model", "export", "compare_scores", "study")

SECONDS = 30.0  # until a command counts as hanging; most take 0.1 s
MEMORY = 1024  # MiB that a command on these tiny files may take
_ADDRESSES = 4096 * 2**20  # bytes of address space; more memory is refused, for the sake of the machine

STDOUT, STDERR = "stdout", "stderr"

_FRAME = re.compile(r'File "([^"]+)", line \d+, in (\S+)')


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        code: the exit code; negative: the signal that ended it; None: it hung.
        memory: MiB of resident memory more than the parent had.
        seconds: of processor time.
        left: temporary files that it left.
        lost: files of the user that it changed.
    """

    code: int | None
    out: str
    err: str
    memory: int
    seconds: float = 0.0
    left: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def problem(self) -> str | None:
        """What is wrong, in a few words that are equal for equal causes; None if all is well."""
        if self.code is None:
            return "hang"
        if "Traceback (most recent call last)" in self.out + self.err:
            return f"traceback: {_cause(self.out + self.err)}"
        if self.code not in (0, 1, 2):
            return f"code {self.code}"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if len(errors) != (self.code != 0):
            return f"code {self.code} with {len(errors)} lines 'error: …'"
        if errors and not re.fullmatch(r"error: .*\S; ?\S.*", errors[0]):
            return "a message without '; what would be right'"
        if errors and not errors[0].isprintable():
            return "a message with control characters"
        if errors and self.err.rstrip("\n").splitlines()[-1] != errors[0]:
            return "a message of more than one line"
        if self.lost:
            return f"lost: {self.lost[0]}"
        if self.memory > MEMORY:
            return "memory"
        return f"left behind: {re.sub(r'[0-9]+', 'N', self.left[0])}" if self.left else None


def _cause(text: str) -> str:
    """The exception of the last traceback, and the innermost function of this repository that it passed."""
    last = text.rsplit("Traceback (most recent call last)", 1)[1]
    ours = [(file, name) for file, name in _FRAME.findall(last) if _is_ours(file)]
    raised = re.findall(r"^([\w.]+)(?::.*)?$", last, re.MULTILINE)
    file, name = ours[-1] if ours else ("?", "?")
    return f"{(raised or ['?'])[-1].split('.')[-1]} in {file.removeprefix(f'{ROOT}/')}:{name}"


def _is_ours(file: str) -> bool:
    return file.startswith(f"{ROOT}/") and "site-packages" not in file


def import_everything() -> None:
    """Import what any command may need, so that a child need not. No thread may run when a child is forked."""
    import torch
    from tqdm import tqdm

    tqdm.monitor_interval = 0
    torch.set_num_threads(1)
    from options.actions import ACTIONS

    for module in (*(f"actions.{name.replace('-', '_')}" for name in ACTIONS), *(f"tools.{name}" for name in TOOLS)):
        importlib.import_module(module)


def run_program(entry: str, arguments: Sequence[str]) -> object:
    """Run `main` or the tool of this name, as from the command line."""
    sys.argv = [entry, *arguments]
    if entry == "main":
        return importlib.import_module("main").main(arguments)
    if entry == "library":
        return ended(partial(importlib.import_module("tests.fuzz.library").main, arguments))
    return importlib.import_module("tools.cli").run(importlib.import_module(f"tools.{entry}").main)


class Forked:
    """A child that runs a function, whose exit code it returns or raises as `SystemExit`.

    Its output, and its temporary files in `tmp`, go to the folder.
    """

    def __init__(self, command: Callable[[], object], folder: Path) -> None:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._folder, self._before = folder, _resident()
        sys.stdout.flush()
        sys.stderr.flush()
        self._child = os.fork()
        if self._child == 0:
            _run_and_exit(command, folder)
        self._watched = os.pidfd_open(self._child)

    def wait(self, seconds: float = SECONDS) -> Outcome:
        """Wait until the child ends. Kills it if it hangs.

        It hangs if it has computed for this time, or not at all for this time. So a machine that is busy with other
        things makes no difference.
        """
        computed = 0.0
        while not (ended := bool(select.select([self._watched], [], [], seconds)[0])):
            before, computed = computed, self._computed()
            if computed > seconds or computed - before < 0.001 * seconds:
                os.killpg(self._child, signal.SIGKILL)
                break
        _, status, usage = os.wait4(self._child, 0)
        os.close(self._watched)
        files = self._folder / STDOUT, self._folder / STDERR
        out, err = (file.read_text(errors="replace") if file.is_file() else "" for file in files)
        return Outcome(
            code=os.waitstatus_to_exitcode(status) if ended else None,
            out=out,
            err=err,
            memory=max(0, usage.ru_maxrss // 1024 - self._before),
            seconds=usage.ru_utime + usage.ru_stime,
            left=_left_behind(self._folder),
        )

    def _computed(self) -> float:
        """Seconds of processor time."""
        fields = Path(f"/proc/{self._child}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _run_and_exit(command: Callable[[], object], folder: Path) -> None:
    """The child: ends as `sys.exit(command())` would end the program."""
    code: object = 70
    try:
        os.setsid()
        _forget_exit_functions()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        for number, name in ((1, STDOUT), (2, STDERR)):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w", errors="backslashreplace", buffering=1)  # noqa: SIM115
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _ADDRESSES, taken + _ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            code = command()
        except SystemExit as leaving:
            code = leaving.code
        except BaseException:
            traceback.print_exc()
            code = 1
        atexit._run_exitfuncs()  # such as those that delete temporary folders
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code if isinstance(code, int) else int(code is not None))


def _forget_exit_functions() -> None:
    """Those of the parent would delete its temporary folders."""
    weakref.finalize._registry.clear()
    weakref.finalize._registered_with_atexit = False
    atexit._clear()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 2**20


def _left_behind(folder: Path) -> tuple[str, ...]:
    """Temporary files: all in the folder for them, and elsewhere those that are named so."""
    found = [path.relative_to(folder) for path in folder.rglob("*")]
    left = [path for path in found if path.parent.name == "tmp" or re.search(r"\.tmp|incomplete$", path.name)]
    return tuple(sorted(str(path) for path in left))
