"""Lightning's launcher of the other processes of a node, with another end for a run that loses one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from actions.run.endings import FAILED, LOST, is_ending

_started: list[subprocess.Popen[bytes]] = []  # the first trainer starts them, and later trainers use them too
_PATIENCE = 30.0  # seconds in which this process can find out by itself that another one is lost


class Launcher(_SubprocessScriptLauncher):
    """Starts the processes. If one of them is lost, this process ends in one line, as do processes of torchrun.

    Lightning kills this process within five seconds, perhaps before it has printed its line, and prints another one.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: object = None, **kwargs: Any) -> Any:
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            _started.extend(self.procs)
            threading.Thread(target=_watch, args=(self.procs,), daemon=True).start()
        self.procs = _started
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def _watch(others: Sequence[subprocess.Popen[bytes]]) -> None:
    """End this process if another one is lost and this one does not find out.

    On a CPU, a collective fails soon. Others may wait without end.
    """
    while not any(codes := [one.poll() for one in others]):
        if None not in codes:
            return
        time.sleep(1)
    time.sleep(_PATIENCE)
    if is_ending():
        return
    print(f"error: {LOST}", file=sys.stderr, flush=True)
    for one in others:
        one.kill()
    os._exit(FAILED)
