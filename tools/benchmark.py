"""Measure what the project claims about speed and memory, on this machine: one subcommand a claim.

Variants run by turns in one process with one thread, and are compared round by round: machines that are shared, or that
grow warm, slow all of them alike. On a CPU, seconds are the process's own CPU time.

examples:
  python tools/benchmark.py lora-vs-peft
  python tools/benchmark.py shortcuts --rounds 25
  python tools/benchmark.py padding --help
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, for `python tools/…` from anywhere

from tools import benchmarks
from tools.cli import Parser, run


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the first argument names; list them all if it asks for help.

    Raises:
        UserError: an unknown benchmark or option.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        print("benchmarks:")
        for name, summary in benchmarks.summaries().items():
            print(f"  {name:<14}{summary}")
        return
    name, *options = given
    benchmark = benchmarks.get(name)
    parser = Parser(benchmark.__doc__)
    parser.prog = f"benchmark.py {name}"
    parser.set_defaults(command=shlex.join(["python", "tools/benchmark.py", *given]))
    benchmark.add_options(parser)
    benchmark.run(parser.parse_args(options))


if __name__ == "__main__":
    run(main)
