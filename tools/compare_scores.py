"""Compare scores files of one model: Spearman's rank correlation, and how much of the top share they agree on.

The overlap is the share of the elements that one file turns on which the other turns on too; by chance it is p.
Elements with equal scores get their mean rank in the correlation, and are chosen at random for the top share.

example:
  python tools/compare_scores.py grad_norm.toml snip.toml fisher.toml --turn-on-percentile 0.25
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.cli import Parser, check_different, real, run

from rich.table import Table
from scipy.stats import spearmanr

from actions.run.console import note, say
from heterolora.choosing import scores as scores_file
from heterolora.choosing.allocation import default_mode, tie_generator
from heterolora.choosing.ranks import Budget, choose
from heterolora.choosing.scores import Scores
from heterolora.common.errors import UserError
from options.ranges import share


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the files and print two tables. Raises UserError unless two or more files score the same elements."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("scores", type=Path, nargs="+", metavar="SCORES.toml", help="two or more scores files of imp-test")
    add("--turn-on-percentile", type=real(share), default=0.25, metavar="P", help="the top share (default: 0.25)")
    args = parser.parse_args(arguments)
    if len(args.scores) < 2:
        raise UserError("one scores file", "expected two or more to compare")

    check_different(args.scores)
    files = {path: scores_file.read(path) for path in args.scores}
    check_same_elements(files)
    count = Counter(scores.importance_test_name for scores in files.values())
    named = {}
    for path, scores in files.items():
        heuristic = scores.importance_test_name
        named[heuristic if count[heuristic] == 1 else f"{heuristic} ({path})"] = scores
    for title, scores in named.items():
        if len({item.score for item in scores.scored}) == 1:
            note(f"all scores of {title} are equal: their correlation is undefined, and their top share is random")
    say(_matrix("Spearman", named, spearman))
    say(_matrix(f"top {args.turn_on_percentile:.0%}", named, lambda a, b: overlap(a, b, args.turn_on_percentile)))


def spearman(a: Scores, b: Scores) -> float | None:
    """Spearman's correlation over all elements; `None` if all scores of a file are equal."""
    by_key = {item.element.key: item.score for item in b.scored}
    pairs = [(item.score, by_key[item.element.key]) for item in a.scored]
    if any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return float(spearmanr(pairs).statistic)


def overlap(a: Scores, b: Scores, percentile: float) -> float:
    """The share of the elements that `a` turns on at share `percentile` which `b` turns on too."""
    budget = Budget("share", percentile)
    first, second = (
        choose(scores.scored, budget, default_mode(scores.has_shortcuts), tie_generator(scores.seed, 0))
        for scores in (a, b)
    )
    return len(first & second) / len(first)


def check_same_elements(files: Mapping[Path, Scores]) -> None:
    """Raises UserError unless all files score the same elements with the same widths."""
    widths = {
        path: {item.element.key: (item.element.in_features, item.element.out_features) for item in scores.scored}
        for path, scores in files.items()
    }
    first, expected = next(iter(widths.items()))
    for path, found in widths.items():
        for key in {**expected, **found}:
            if expected.get(key) != found.get(key):
                raise UserError(
                    f"{path} scores another model than {first}: {key} differs", "expected scores of the same elements"
                )


def _matrix(title: str, named: Mapping[str, Scores], measure: Callable[[Scores, Scores], float | None]) -> Table:
    table = Table(title, *named)
    for name, a in named.items():
        values = [measure(a, b) for b in named.values()]
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    return table


if __name__ == "__main__":
    run(main)
