"""Measure what the project claims about speed and memory, on this machine: one subcommand for each claim.

Variants run in turn in one process with one thread, and are compared round by round: on a shared or warm machine all of
them slow down alike. On a CPU, seconds are the CPU time of the process.

examples:
  python -m benchmarks lora-vs-peft
  python -m benchmarks shortcuts --rounds 25
  python -m benchmarks padding --help
"""

from __future__ import annotations

import ast
import importlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from tools.cli import Parser, run, whole_number

import benchmarks
from heterolora.common.checks import present
from heterolora.common.errors import UserError, nearest
from options.ranges import at_least

COMMON_OPTIONS = (
    ("--rounds", 15, "rounds to time"),
    ("--hidden-size", 768, "width of the model; 768 as in OPT-125M"),
    ("--layers", 6, "number of blocks"),
    ("--rows", 8, "rows of a batch"),
    ("--tokens", 64, "tokens of a row"),
    ("--rank", 8, "r of every element"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the first argument names, or list all. Raises UserError if an argument is wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        print("benchmarks:")
        for name, summary in summaries().items():
            print(f"  {name:<14}{summary}")
        return
    benchmark = get(given[0])
    parser = Parser(present(benchmark.__doc__), f"python -m benchmarks {given[0]}")
    for flag, default, meaning in COMMON_OPTIONS:
        parser.add_argument(
            flag, type=whole_number(at_least(1)), default=default, metavar="N", help=f"{meaning} (default: %(default)s)"
        )
    parser.add_argument("--device", help="cpu or cuda (default: the GPU if there is one)")
    benchmark.add_options(parser)
    args = parser.parse_args(given[1:])

    _check_widths(args.hidden_size, args.rank)
    from benchmarks import measure  # imports torch, which the list does not need

    args.device = measure.device(args.device)
    args.command = shlex.join(["python", "-m", "benchmarks", *given])
    benchmark.run(args)


def _check_widths(width: int, rank: int) -> None:
    """Raise UserError unless the models of the benchmarks can have this width, and their elements this rank."""
    if width % max(1, width // 64):
        raise UserError(f"--hidden-size {width} cannot be divided among heads", "give at most 127, or a multiple of 64")
    if rank > width:
        raise UserError(f"--rank {rank} is above --hidden-size {width}", f"give at most {width}")


def summaries() -> Mapping[str, str]:
    """Name of each benchmark → first line of its docstring. Imports nothing."""
    folder = Path(benchmarks.__file__).parent
    sources = {name: (folder / f"{name.replace('-', '_')}.py").read_text("utf-8") for name in benchmarks.NAMES}
    return {name: present(ast.get_docstring(ast.parse(source))).partition("\n")[0] for name, source in sources.items()}


def get(name: str) -> ModuleType:
    """The benchmark of that name. Raises UserError with the nearest name if there is none."""
    if name not in benchmarks.NAMES:
        raise UserError(f"the benchmark '{name}' is not known", nearest(name, benchmarks.NAMES))
    return importlib.import_module(f"benchmarks.{name.replace('-', '_')}")


if __name__ == "__main__":
    run(main)
