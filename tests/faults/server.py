"""A process that has imported everything, and forks a child for each command that it is asked to run.

Importing the libraries takes longer than a whole run on a tiny model. So a test of many faults asks this process:

  python -m tests.faults.server   reads a JSON object a line, and answers with one
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.inject import Fault, inject
from tests.forked import Forked, Outcome, import_everything, run_program
from tests.world import ROOT, command


class Server:
    """The process, as a test uses it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.server"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, fault: Fault | None = None) -> Outcome:
        """Run `python -m main` with small options, and with a fault."""
        (outcome,) = self.run_at_once(arguments, fault=fault)
        return outcome

    def run_at_once(self, *commands: Sequence[object], fault: Fault | None = None) -> list[Outcome]:
        """Run several of them at the same time, each with the fault."""
        ask = {"commands": [command(*arguments) for arguments in commands], "fault": fault and asdict(fault)}
        self._process.stdin.write(json.dumps(ask) + "\n")
        self._process.stdin.flush()
        return [Outcome(**values) for values in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _answer(commands: Sequence[Sequence[str]], fault: dict[str, Any] | None) -> list[Outcome]:
    def run(arguments: Sequence[str]) -> object:
        if fault is not None:
            inject(Fault(**fault))
        return run_program("main", arguments)

    with tempfile.TemporaryDirectory() as folder:
        started = [
            Forked(partial(run, arguments), Path(folder) / str(number)) for number, arguments in enumerate(commands)
        ]
        return [child.wait() for child in started]


def main() -> None:
    import_everything()
    for line in sys.stdin:
        print(json.dumps([asdict(outcome) for outcome in _answer(**json.loads(line))]), flush=True)


if __name__ == "__main__":
    main()
