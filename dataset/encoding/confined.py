"""Runs a program from outside, such as a chat template, in a child process with limits on its time and memory.

A template of a few characters can compute for hours or fill the memory, and no sandbox of its language prevents that.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from heterolora.common.errors import UserError

SECONDS = 20  # of processor time for an item
MEMORY = 2 * 2**30  # bytes, besides what the process has already

_T = TypeVar("_T")


def confined(what: str, compute: Callable[[_T], Any], items: Sequence[_T]) -> list[Any]:
    """Return `compute(item)` of each item, as JSON holds it. `what` names the program in messages.

    Raises the UserError that `compute` raises, or one for an item that takes more than the limits. There are no
    limits on other systems than Linux.
    """
    if sys.platform != "linux":
        return [compute(item) for item in items]
    return list(_results(what, compute, items))


def _results(what: str, compute: Callable[[_T], Any], items: Sequence[_T]) -> Iterator[Any]:
    reading, writing = os.pipe()
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # the child uses no thread's locks
        child = os.fork()
    if child == 0:
        _compute_and_exit(compute, items, reading, writing)
    os.close(writing)
    ended = False
    try:
        with open(reading, encoding="utf-8") as lines:
            for item in items:
                line = lines.readline()
                if not line.endswith("\n"):
                    ended, status = True, os.waitpid(child, 0)[1]
                    raise _exceeded(what, item, status)
                yield _result(json.loads(line))
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _result(answer: dict[str, Any]) -> Any:
    if "found" in answer:
        raise UserError(answer["found"], answer["expected"])
    return answer["value"]


def _exceeded(what: str, item: object, status: int) -> UserError:
    timed_out = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
    limit = f"{SECONDS} s of computing" if timed_out else f"{MEMORY // 2**30} GiB of memory"
    return UserError(f"{what} takes more than {limit} for {str(item)[:80]}", "correct it, or leave the row out")


def _compute_and_exit(compute: Callable[[_T], Any], items: Sequence[_T], reading: int, writing: int) -> NoReturn:
    """The child. The system ends it when an item takes too long, also inside a function of a library."""
    try:
        _limit_resources()
        os.close(reading)
        with open(writing, "w", encoding="utf-8") as lines:
            for item in items:
                signal.setitimer(signal.ITIMER_PROF, SECONDS)
                try:
                    answer = json.dumps({"value": compute(item)})
                except UserError as error:
                    answer = json.dumps({"found": error.found, "expected": error.expected})
                lines.write(f"{answer}\n")
                lines.flush()
    finally:
        os._exit(1)  # no handler of the parent runs here


def _limit_resources() -> None:
    import resource

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries report there that memory is full
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads of the parent are not here
    with open("/proc/self/statm", encoding="ascii") as numbers:
        taken = int(numbers.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = taken + MEMORY if hard == resource.RLIM_INFINITY else min(taken + MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
