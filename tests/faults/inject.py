"""Faults of the machine, put into the process that they are to befall."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CALLS = ("fsync", "replace")  # before a file is renamed, and to rename it
What = Literal["ENOSPC", "EIO", "EFBIG", "SIGKILL", "SIGINT", "SIGTERM", "none"]

LARGEST_FILE = 6_000  # bytes; more than the output of a run, and less than a checkpoint


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        call: one of `CALLS`, functions of `os` that this program calls for each file that it writes.
        at: the number of the call, from 1.
        what: the error that the call ends with, or the signal that arrives right before it. EFBIG: from this call on,
            the system refuses files larger than `LARGEST_FILE`, as with `ulimit -f`.
        clock: seconds by which the clock is wrong.
        stopped_at: the time that the clock shows always, in seconds since 1970.
        counted: a folder, in which the number of calls of each function is written to a file with its name.
    """

    call: Literal["fsync", "replace"] = "replace"
    at: int = 0
    what: What = "none"
    clock: float = 0.0
    stopped_at: float | None = None
    counted: str | None = None


def inject(fault: Fault) -> None:
    """Put a fault into this process, which is to end soon."""
    if fault.clock or fault.stopped_at:
        _set_clock(fault)
    for name in CALLS if fault.counted else (fault.call,) if fault.at else ():
        setattr(os, name, _faulty(name, fault))


def _faulty(name: str, fault: Fault) -> Callable[..., Any]:
    call, count = getattr(os, name), 0

    def faulty(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        if name == "fsync" and not stat.S_ISREG(os.fstat(arguments[0]).st_mode):
            return call(*arguments)  # of a folder, which some file systems refuse
        count += 1
        if fault.counted is not None:
            (Path(fault.counted) / name).write_text(str(count))
        if count == fault.at:
            _happen(fault.what)
        return call(*arguments, **options)

    return faulty


def _happen(what: What) -> None:
    if what == "EFBIG":  # Python ignores SIGXFSZ, so writing fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    elif what.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, what))
    else:
        number = getattr(errno, what)
        raise OSError(number, os.strerror(number))


def _set_clock(fault: Fault) -> None:
    """The wall clock only: no program can set the monotonic one back."""
    right, local, text = time.time, time.localtime, time.strftime

    def wrong() -> float:
        return right() + fault.clock if fault.stopped_at is None else fault.stopped_at

    time.time = wrong
    time.time_ns = lambda: int(wrong() * 10**9)
    time.localtime = lambda at=None: local(wrong() if at is None else at)
    time.strftime = lambda form, at=None: text(form, local(wrong()) if at is None else at)
