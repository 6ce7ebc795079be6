"""A pytest plugin for `make test-newest`: a call of something deprecated, from our own code, is an error.

A library may warn with a wrong stack level, or from inside itself. So the caller is looked for: outward from the
warning, through all frames of the library that warns, to the first frame of another package. If this is a file of this
project, the warning is raised as an error. What one library calls in another one is not ours to change.

transformers writes most of its deprecations to its log, so a record that speaks of one is treated in the same way.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

OWN = ("heterolora", "options", "dataset", "model", "actions", "tools", "benchmarks", "main", "tests")
ROOT = Path(__file__).resolve().parents[1]
KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
#: Their decorators warn from a function of their own, so that no frame is of the library.
_DECORATORS = ("typing_extensions", "warnings", "deprecate", "deprecated")
#: Calls pass through these, which are not the library itself.
_BETWEEN = ("functools", "contextlib", "logging", "abc")
_LOGGED = re.compile(r"\bdeprecated\b|will be removed|is going to be removed", re.IGNORECASE)


class DeprecatedError(Exception):
    """Our own code uses what a library will remove."""


def pytest_configure(config: pytest.Config) -> None:
    original = warnings.warn

    def warn(message: Any, category: Any = None, stacklevel: int = 1, source: Any = None, **more: Any) -> None:
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        if issubclass(kind, KINDS):
            _check(str(message), sys._getframe(1))
        original(message, category, stacklevel + 1, source, **more)

    warnings.warn = warn  # type: ignore[assignment]
    for kind in KINDS:  # also of code in C, which does not call it
        config.addinivalue_line("filterwarnings", rf"error::{kind.__name__}:({'|'.join(OWN)})(\..*)?$")
    for library in ("transformers", "datasets", "peft", "trl", "accelerate"):
        logging.getLogger(library).addHandler(_Listener(logging.WARNING))


class _Listener(logging.Handler):
    """Raises an error for a record that our own code causes."""

    def emit(self, record: logging.LogRecord) -> None:
        if _LOGGED.search(record.getMessage()):
            _check(record.getMessage(), sys._getframe(1))


def _check(message: str, frame: FrameType) -> None:
    """Raise DeprecatedError if this project called the library of `frame`."""
    if (line := _own_line(frame)) is not None:
        raise DeprecatedError(f"{line}: {message}")


def _own_line(frame: FrameType) -> str | None:
    """The line of this project that called the library of `frame`. None if another library called it."""
    first = _package(frame)
    library = first if first in _DECORATORS else None  # whoever calls what a decorator marks is the next one
    for each in _outward(frame):
        if _package(each) in (*_BETWEEN, *_DECORATORS):
            continue
        if _is_own(each):
            return f"{each.f_code.co_filename}:{each.f_lineno}"
        if library is not None and _package(each) != library:
            return None
        library = _package(each)
    return None


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_own(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return path.is_relative_to(ROOT) and "site-packages" not in path.parts
