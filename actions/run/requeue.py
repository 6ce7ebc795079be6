"""Requeues the SLURM job of a run that a signal ends (`--auto-requeue`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from actions.run.console import is_first_process, note
from actions.run.endings import terminate
from options.run import RunOptions


def requeues(options: RunOptions) -> bool:
    return options.auto_requeue and "SLURM_JOB_ID" in os.environ


@contextmanager
def requeued_if_stopped(options: RunOptions) -> Iterator[None]:
    """With --auto-requeue, SIGUSR1 ends the block, and the job is requeued.

    In training, `RunCheckpoints` handles SIGUSR1 and SIGTERM: it saves, and requeues the job. Outside it, SIGTERM does
    not requeue: SLURM also sends it when another process has failed, and the job would fail again without end.
    """
    if not requeues(options) or threading.current_thread() is not threading.main_thread():
        yield
        return
    stopped = False

    def stop(*_: Any) -> None:
        nonlocal stopped
        stopped = True
        terminate()

    earlier = signal.signal(signal.SIGUSR1, stop)
    try:
        yield
    except BaseException:
        if stopped:
            requeue()
        raise
    finally:
        signal.signal(signal.SIGUSR1, earlier)


def requeue() -> None:
    """Ask SLURM to start the job again, unless it was cancelled. Prints a note if SLURM refuses."""
    if not is_first_process():
        return
    job = os.environ["SLURM_JOB_ID"]
    try:
        if _is_cancelled(job):
            return
        asked = _scontrol("requeue", job)
        problem = asked.stderr.strip() if asked.returncode else None
    except OSError as error:
        problem = f"scontrol: {error.strerror}"
    if problem is not None:
        note(f"SLURM did not requeue job {job} ({problem}): submit it again, with --resume-training")


def _is_cancelled(job: str) -> bool:
    """Whether `scancel` ends the job. SLURM would requeue it too. False if SLURM is too old to tell."""
    try:
        states = json.loads(_scontrol("show", "job", job, "--json").stdout)["jobs"][0]["job_state"]
    except (ValueError, LookupError, TypeError):
        return False
    return "CANCELLED" in states


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True)
