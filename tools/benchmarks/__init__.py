"""The benchmarks: every file of this folder is a subcommand, `shortcuts.py` is `benchmark.py shortcuts`.

Such a file has a docstring, whose first line the list of benchmarks shows, and two functions::

    def add_options(parser: argparse.ArgumentParser) -> None: ...
    def run(args: argparse.Namespace) -> None: ...

`args.command` is the whole command, for the report. `tools/measure.py` times variants by turns and shows the figures,
`tools/subjects.py` makes models to measure.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

from heterolora.errors import UserError, nearest


class Benchmark(Protocol):
    """What a file of this folder is."""

    __doc__: str

    def add_options(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> None: ...


def summaries() -> Mapping[str, str]:
    """Name -> first line of the docstring, read without importing anything."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem != "__init__")
    return {path.stem.replace("_", "-"): _summary(path) for path in files}


def get(name: str) -> Benchmark:
    """The benchmark of that name; `UserError` with the nearest name if there is none."""
    if name not in summaries():
        raise UserError(f"the benchmark '{name}' is not known", nearest(name, tuple(summaries())))
    return cast(Benchmark, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def _summary(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
