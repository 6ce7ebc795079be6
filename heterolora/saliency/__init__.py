"""Saliency heuristics: scores of the elements of a search space.

A heuristic is a file `heuristics/<name>.py` that registers, with `@register("<name>")`, a function from a `Problem` to
one score per element. A new heuristic needs only such a file. The names are read from the file names, so that `--help`
can list them without importing torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heterolora.common.errors import UserError, nearest
from heterolora.elements.element import OUTSIDE, Element, check_no_experts, check_outside
from heterolora.saliency import heuristics

if TYPE_CHECKING:
    from heterolora.saliency.problem import Problem

Scorer = Callable[["Problem"], Sequence[float | Sequence[float]]]


@dataclass(frozen=True)
class Heuristic:
    """A registered heuristic.

    Attributes:
        name: the value of `--importance-test-name`.
        score: problem -> one score per element of its search space, in order; the same on every process. It may give
            a sequence per element: the scores of its first rank, its second, ….
        warmup_batches: the default number of batches on which the elements are trained before scoring; above 0 for a
            heuristic that scores every element 0 while B = 0.
        remark: a note for the user about every result.
        needs_base_weights: whether it reads the weights of the base, which a quantised base does not provide.
        scores_experts: whether it can score the weights of experts, whose inputs are not observed.
        scores_outside: names of the places outside of the blocks that it can score.
        needs_table: whether it reads the table of the architecture (`heterolora.Family`).
        is_baseline: whether equal scores are intended, so that they need no warning.
        hint: an additional cure if all scores are 0.
        ignores: what its scores do not depend on: `batches` (the scoring batches), `metric`, `cut` (how the rows are
            cut into batches, if each batch is the mean over as many rows).
    """

    name: str
    score: Scorer
    warmup_batches: int = 0
    remark: str = ""
    needs_base_weights: bool = False
    scores_experts: bool = True
    scores_outside: tuple[str, ...] = tuple(OUTSIDE)
    needs_table: bool = False
    is_baseline: bool = False
    hint: str = ""
    ignores: tuple[str, ...] = ()

    def check(self, elements: Sequence[Element]) -> None:
        """Raise UserError if it cannot score one of these elements."""
        if not self.scores_experts:
            other = "leave the experts out, or use another heuristic, such as grad_norm"
            check_no_experts(elements, f"{self.name} cannot score", other)
        other = "leave it out, or use another heuristic, such as grad_norm"
        check_outside(elements, self.scores_outside, f"{self.name} cannot score", other)


_registered: dict[str, Heuristic] = {}


def register(name: str, **properties: Any) -> Callable[[Any], Any]:
    """Decorator of a heuristic: a function of a `Problem`, or a class whose instances are called with one.

    `name` is the name of the file without its suffix, and `properties` are the other attributes of `Heuristic`.
    """

    def keep(scorer: Any) -> Any:
        score = scorer() if isinstance(scorer, type) else scorer
        _registered[name] = Heuristic(name, score, **properties)
        return scorer

    return keep


def names() -> tuple[str, ...]:
    """The names of all heuristics, sorted."""
    files = {found.name for found in pkgutil.iter_modules(heuristics.__path__)}
    return tuple(sorted(files | _registered.keys()))


def get(name: str) -> Heuristic:
    """The heuristic of that name. Raises UserError if there is none."""
    if name not in names():
        raise UserError(f"importance test '{name}' is not known", nearest(name, names()))
    if name not in _registered:
        importlib.import_module(f"{heuristics.__name__}.{name}")
    if name not in _registered:
        raise UserError(f"heuristics/{name}.py registers no heuristic '{name}'", f'expected @register("{name}")')
    return _registered[name]
