"""Parameters of which `make test` tries some, and `make test-slow` the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """`values` for `pytest.mark.parametrize`, in their order: those that are not in `quick` are slow.

    A tuple stands for several arguments, as everywhere in `parametrize`.
    """
    return [value if value in quick else _slow(value) for value in values]


def _slow(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.slow)
