"""Saliency heuristics: how much each element of a search space matters, before it is trained.

A heuristic is a file `heuristics/<name>.py` that registers, by `@register("<name>")`, something that maps a `Problem`
to one score an element. Adding a heuristic means adding such a file and nothing else. Their names are read from the
file names, so that `--help` can list them without importing torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heterolora.errors import UserError, nearest
from heterolora.saliency import heuristics

if TYPE_CHECKING:
    from heterolora.saliency.problem import Problem

Scorer = Callable[["Problem"], Sequence[float]]


@dataclass(frozen=True)
class Heuristic:
    """A registered heuristic.

    Attributes:
        name: the one of `--importance-test-name`.
        score: problem → one score for each element of its search space, in order; the same on every process.
        warmup_batches: on how many batches the elements are trained first, unless the user says.
        remark: what a user should know of every result.
    """

    name: str
    score: Scorer
    warmup_batches: int = 0
    remark: str = ""


_registered: dict[str, Heuristic] = {}


def register(name: str, warmup_batches: int = 0, remark: str = "") -> Callable[[Any], Any]:
    """Decorator of a heuristic: a function of a `Problem`, or a class whose instances are called with one.

    The arguments are `Heuristic`'s.
    """

    def keep(scorer: Any) -> Any:
        score = scorer() if isinstance(scorer, type) else scorer
        _registered[name] = Heuristic(name, score, warmup_batches, remark)
        return scorer

    return keep


def names() -> tuple[str, ...]:
    """Every heuristic, sorted."""
    return tuple(sorted(found.name for found in pkgutil.iter_modules(heuristics.__path__)))


def get(name: str) -> Heuristic:
    """The heuristic of that name; `UserError` with the nearest name if there is none."""
    if name not in names():
        raise UserError(f"importance test '{name}' is not known", nearest(name, names()))
    importlib.import_module(f"{heuristics.__name__}.{name}")
    return _registered[name]
