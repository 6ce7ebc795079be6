"""How far the scores of several runs agree: Spearman's rank correlation, and the overlap of their top shares."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from scipy.stats import spearmanr

from heterolora.choosing.allocation import default_mode, tie_generator
from heterolora.choosing.ranks import Budget, choose
from heterolora.choosing.scores import Scores
from heterolora.common.errors import UserError
from tools.reporting.comparison import Row
from tools.reporting.parts.part import Part
from tools.reporting.run import Run

TOP_SHARE = 0.25


def agreement(runs: Sequence[Run]) -> Iterator[Part]:
    """Two tables for each model that several runs scored."""
    scored = {run.name: run.scores for run in runs if run.scores is not None}
    models = {name: tuple(sorted(widths(scores).items())) for name, scores in scored.items()}
    for model in dict.fromkeys(models.values()):
        same = {name: scores for name, scores in scored.items() if models[name] == model}
        if len(same) > 1:
            yield from compared(same, TOP_SHARE)


def compared(named: Mapping[str, Scores], share: float) -> tuple[Part, Part]:
    """Two tables of all pairs. The scores are of the same elements."""
    ranks = "Spearman's rank correlation of the scores of all elements."
    choices = f"Of the best {share:.0%} of the run of a row, the share that are among the best of the run of a column."
    return (
        _pairs("Agreement of scores", ranks, "Spearman", named, spearman),
        _pairs("Agreement of choices", choices, f"top {share:.0%}", named, lambda a, b: overlap(a, b, share)),
    )


def check_same_elements(files: Mapping[Path, Scores]) -> None:
    """Raise UserError unless all files score the same elements with the same widths."""
    first, *others = files
    expected = widths(files[first])
    for path in others:
        found = widths(files[path])
        for key in {**expected, **found}:
            if expected.get(key) != found.get(key):
                words = f"{path} scores another model than {first}: {key} differs"
                raise UserError(words, "expected scores of the same elements")


def widths(scores: Scores) -> dict[str, tuple[int, int]]:
    """Key → widths of each element that is scored."""
    return {item.element.key: (item.element.in_features, item.element.out_features) for item in scores.scored}


def spearman(a: Scores, b: Scores) -> float | None:
    """Spearman's correlation over all elements, with mean ranks for ties; None if all scores of one are equal."""
    by_key = {item.element.key: item.score for item in b.scored}
    pairs = [(item.score, by_key[item.element.key]) for item in a.scored]
    if any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(pairs).statistic)


def overlap(a: Scores, b: Scores, share: float) -> float:
    """The share of the elements that `a` turns on at this budget which `b` turns on too; by chance it is the budget."""
    first, second = (
        choose(one.scored, Budget("share", share), default_mode(one.has_shortcuts), tie_generator(one.seed, 0))
        for one in (a, b)
    )
    return len(first & second) / len(first)


def _pairs(
    heading: str,
    text: str,
    what: str,
    named: Mapping[str, Scores],
    measure: Callable[[Scores, Scores], float | None],
) -> Part:
    values = {pair: measure(*(named[name] for name in pair)) for pair in itertools.product(named, repeat=2)}
    texts = {pair: "–" if value is None else f"{value:.3f}" for pair, value in values.items()}
    rows = tuple(Row.of(name, *(texts[name, other] for other in named)) for name in named)
    return Part(heading, text, head=(what, *named), rows=rows)
