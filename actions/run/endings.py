"""How a command ends: with one exit code for each way, and no traceback for what comes from outside."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeGuard

from actions.run.console import is_first_of_node, local_rank
from heterolora.common.errors import DivergenceError, UserError, shown
from heterolora.common.files import DISK_FAILURES, cannot_write
from options.actions import as_started

FAILED, USER_ERROR = 1, 2
INTERRUPTED, CLOSED_PIPE, TERMINATED = 128 + 2, 128 + 13, 128 + 15  # as a shell reports SIGINT, SIGPIPE and SIGTERM
LOST = "another process of this run is gone; see its output, then --resume-training"

#: An environment variable: set for a process that is to end when the process that started it is killed.
ENDS_WITH_PARENT = "HETEROLORA_ENDS_WITH_PARENT"

_PARENT = os.getppid()
_PR_SET_PDEATHSIG = 1  # of Linux: the signal that a process gets when its parent ends

_launched: list[subprocess.Popen[bytes]] = []  # to kill


def ended(command: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    A mistake of the user, a disk or a GPU that is full and a diverged run give one line on stderr. Ctrl-C, SIGTERM and
    a closed pipe end quietly: temporary files are removed, and nothing is printed. Any other exception is raised.
    """
    with _handlers():
        code = 0
        try:
            try:
                command()
                print(end="", flush=True)
            except BaseException as reason:
                if (found := _code(reason)) is None:
                    raise
                code = found
        finally:
            while _launched:
                _launched.pop().kill()
            closed = _discard_closed_streams()
        return CLOSED_PIPE if closed and not code else code


def explanation(failure: BaseException) -> str | None:
    """The line for a failure that is no fault of the program; None for another failure."""
    if isinstance(failure, UserError | DivergenceError):
        return str(failure)
    if _is_disk_failure(failure):
        return str(cannot_write(failure.filename or "", failure))
    if isinstance(failure, OSError) and failure.errno == errno.ENAMETOOLONG:
        return f"a name is too long: {shown(failure.filename)}; most systems allow 255 bytes between two slashes"
    if isinstance(failure, RuntimeError) and _is_lost_process(failure):
        return LOST
    if _is_out_of_memory(failure):
        where = "machine" if _is_out_of_cpu_memory(failure) else "GPU"
        return (
            f"the memory of the {where} is full; use a smaller --batch-size, --gradient-checkpointing or --precision "
            "bf16-true, and see `tools/inspect_model.py --plan`"
        )
    return None


def terminate(*_: Any) -> NoReturn:
    """A handler of SIGTERM, which lets the program clean up."""
    raise SystemExit(TERMINATED)


def end_with_this_process(launcher: Any) -> None:
    """Kill the processes that a launcher of Lightning started when this one ends early. They would wait for it.

    They write no files. If they ended before, Lightning would kill this process while it cleans up.
    """
    _launched.extend(getattr(launcher, "procs", ()))


def is_ending() -> bool:
    """Whether `end_with_this_process` was called."""
    return bool(_launched)


def end_with_parent() -> None:
    """Have the system end this process when the torchrun or the study that started it is killed. It would go on.

    A run of a study is told to end, and saves its state. torchrun kills its processes also when it is told to end.
    submitit has SLURM send SIGUSR2 to all processes of a job before its time is over.
    """
    if ENDS_WITH_PARENT in os.environ and sys.platform != "win32":
        signal.signal(signal.SIGUSR2, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    how = signal.SIGKILL if _by_torchrun() else signal.SIGTERM if ENDS_WITH_PARENT in os.environ else None
    if how is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def _code(reason: BaseException) -> int | None:
    """The exit code for the reason that ended a command. None for an exception that nothing explains."""
    chain = list(_chain(reason))  # libraries raise exceptions of their own, or SystemExit(1), when they are stopped
    if any(isinstance(one, KeyboardInterrupt) for one in chain):
        return INTERRUPTED
    if any(_is_termination(one) for one in chain):
        return TERMINATED
    if any(isinstance(one, BrokenPipeError) for one in chain):
        return CLOSED_PIPE
    if isinstance(reason, SystemExit) and not isinstance(reason.code, str):  # Python prints a text
        return reason.code or 0
    line, is_lost = explanation(reason), isinstance(reason, RuntimeError)
    if line is None:
        return None
    of_one = any(_is_disk_failure(one) or _is_out_of_memory(one) for one in chain)
    if is_first_of_node() or of_one or (is_lost and _is_alone()):
        where = "" if is_first_of_node() or not of_one else f"local rank {local_rank()}: "
        with contextlib.suppress(OSError):
            print(f"error: {where}{as_started(line)}", file=sys.stderr)
    failed = is_lost or _is_out_of_memory(reason) or isinstance(reason, DivergenceError)
    return FAILED if failed else USER_ERROR


def _chain(reason: BaseException | None) -> Iterator[BaseException]:
    while reason is not None:
        yield reason
        reason = reason.__context__


def _is_termination(reason: BaseException) -> bool:
    if not isinstance(reason, SystemExit):
        return False
    return reason.code == TERMINATED or type(reason).__name__ == "SIGTERMException"


def _is_disk_failure(failure: BaseException) -> TypeGuard[OSError]:
    return isinstance(failure, OSError) and failure.errno in DISK_FAILURES


def _is_out_of_memory(failure: BaseException) -> bool:
    """torch's own class is for a GPU, and torch is not imported here."""
    return type(failure).__name__ == "OutOfMemoryError" or _is_out_of_cpu_memory(failure)


def _is_out_of_cpu_memory(failure: BaseException) -> bool:
    return isinstance(failure, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(failure)


def _is_lost_process(failure: RuntimeError) -> bool:
    """Whether a collective failed because another process ended. Backends report it only in the message."""
    lost = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
    return any(words in str(failure) for words in lost)


def _is_alone() -> bool:
    """Whether no process of this node is known that prints the same line.

    The process that started others by Lightning's launcher prints it for them. If that one is lost, the first of the
    others prints it.
    """
    if _by_torchrun() or "LOCAL_RANK" not in os.environ:
        return True
    return os.environ["LOCAL_RANK"] == "1" and os.getppid() != _PARENT


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextmanager
def _handlers() -> Iterator[None]:
    """SIGTERM raises SystemExit in the block. Afterwards the handlers are those from before.

    A thread that cannot write says nothing, because the main thread gets the same failure.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)  # Lightning ignores SIGINT once it has received it
    earlier = {number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}
    of_thread = threading.excepthook

    def unless_explained(failed: threading.ExceptHookArgs) -> None:
        value = failed.exc_value
        if value is None or not (isinstance(value, OSError) or explanation(value) is not None):
            of_thread(failed)

    signal.signal(signal.SIGTERM, terminate)
    threading.excepthook = unless_explained
    try:
        yield
    finally:
        threading.excepthook = of_thread
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _discard_closed_streams() -> bool:
    """Flush the output. A stream that fails writes nowhere from then on, because Python flushes it again.

    Returns whether the reader of one is gone.
    """
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as failure:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            closed = closed or isinstance(failure, BrokenPipeError)
    return closed
