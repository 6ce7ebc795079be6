"""Compare scores files of one model: Spearman's rank correlation, and how much of the top share they agree on.

The overlap is the share of the elements that one file turns on which the other turns on too; by chance it is p.
Elements with equal scores get their mean rank in the correlation, and are chosen at random for the top share.

example:
  python tools/compare_scores.py grad_norm.toml snip.toml fisher.toml --turn-on-percentile 0.25
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.cli import Parser, check_different, real, run

from actions.run.console import note, say
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

    from heterolora.choosing import scores as scores_file
    from tools.reporting.parts.agreement import check_same_elements, compared

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
    for part in compared(named, args.turn_on_percentile):
        say(part.as_table())


if __name__ == "__main__":
    run(main)
