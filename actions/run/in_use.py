"""A lock on the folder of a run or of a study, so that no two processes write into it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from actions.run.console import note
from heterolora.common.errors import UserError

LOCK = ".lock"

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system without locks


@contextmanager
def in_use(folder: Path, patience: float = 0.0) -> Iterator[None]:
    """Lock the folder until the block ends. The operating system releases the lock of a process that is killed.

    Waits up to `patience` seconds for another process that holds the lock.

    Raises UserError if another process holds the lock, or if the folder cannot be written.
    """
    path = folder / LOCK
    lock = FileLock(path, on_acquired=_write_holder)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        raise UserError(
            f"{folder} is in use by {_holder(path)}", "wait until that process has ended, or end it"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(
                f"cannot write into {folder} ({error.strerror})", "expected a folder that can be written"
            ) from None
        note(f"the file system of {folder} has no locks: do not start this twice at the same time")
    try:
        yield
    finally:
        lock.release()


def holder(folder: Path) -> str | None:
    """The process that uses the folder; None if there is none, or if the file system cannot tell."""
    path = folder / LOCK
    if not path.is_file():
        return None
    try:
        with FileLock(path).acquire(timeout=0):
            return None
    except Timeout:
        return _holder(path)
    except OSError:
        return None


def _write_holder(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"
