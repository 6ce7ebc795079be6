"""Python's garbage collector, while libraries are imported."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

# Imports make about a million objects that stay, and CPython looks through the young ones after each 700 new ones, and
# through all of them when a quarter is new: 2 of the 15 CPU seconds of a short run.
_THRESHOLD = 100_000


@contextmanager
def seldom_collected(*, stays: bool = False) -> Iterator[None]:
    """Collect garbage only after many new objects, for a while. The settings of before come back.

    Args:
        stays: whether all objects that are there at the end stay until the process ends, so that no later collection
            looks at them: of a program, whose imports they are, but not of a notebook.
    """
    before = gc.get_threshold()
    gc.set_threshold(_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if stays:
            gc.freeze()
