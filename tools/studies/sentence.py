"""The answer of a study in plain words, for each task and budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tools.studies import smallest
from tools.studies.degenerate import warnings
from tools.studies.spec import Study
from tools.studies.statistics import MOST_SEEDS, Difference, SeedsNeeded
from tools.studies.summary import Comparison

FEW = 5  # seeds; with fewer a study suggests


def answer(study: Study, comparison: Comparison) -> str:
    """What makes the result say little, and the result."""
    return " ".join([*warnings(study, comparison), *_results(study, comparison)])


def _results(study: Study, comparison: Comparison) -> Iterable[str]:
    base, missing = study.baseline, comparison.missing
    others = {arm.name: arm.against for arm in comparison.arms if arm.against is not None}
    if base in missing or not comparison.arms:
        yield f"No comparison: {base} has no result ({missing.get(base, 'no run')})."
    elif not others:
        yield f"No comparison: only {base} has a result."
    else:
        if study.question == "smallest":
            yield from smallest.result(study, comparison, suggests(study))
            return
        alpha = 1 - study.confidence
        shown = {name: difference for name, difference in others.items() if difference.corrected <= alpha}
        if shown:
            yield _shown(study, shown)
        if rest := {name: difference for name, difference in others.items() if name not in shown}:
            yield _not_shown(study, rest, others=bool(shown))


def suggests(study: Study) -> str:
    """How a claim begins: with few seeds it is only a suggestion."""
    seeds = len(study.seeds)
    if seeds >= FEW:
        return ""
    few = f"With {seeds} seeds" if seeds > 1 else "With one seed, which says nothing about other seeds"
    return f"{few}, the study suggests that "


def _shown(study: Study, shown: Mapping[str, Difference]) -> str:
    level = f"{study.confidence:.0%}"
    order = sorted(shown, key=lambda name: (shown[name].interval.estimate < 0, -abs(shown[name].interval.estimate)))
    parts = []
    for name in order:
        found = shown[name].interval
        better = "is better than" if suggests(study) else "beats"
        verb = better if found.estimate > 0 else "is worse than"
        low, high = sorted((abs(found.low), abs(found.high)))
        parts.append(f"{name} {verb} {study.baseline} by {abs(found.estimate):.4f} ({low:.4f} to {high:.4f}, {level})")
    return f"{suggests(study)}{'; '.join(parts)}, at equal parameters."


def _not_shown(study: Study, rest: Mapping[str, Difference], others: bool) -> str:
    """What is possible for the arms without a significant difference. `others` says that there are arms with one."""
    base, level = study.baseline, f"{study.confidence:.0%}"
    bound = max(_bound(difference) for difference in rest.values())
    undecided = {name: difference for name, difference in rest.items() if _bound(difference) > study.resolve}
    if not undecided:
        arm = f"{f'{suggests(study)}no' if suggests(study) else 'No'} {'other ' * others}arm"
        return f"{arm} differs from {base} by more than {bound:.4f} ({level}, all arms together)."
    every = "the other arms" if others else "all arms"
    whom = every if len(undecided) == len(rest) else ", ".join(undecided)
    return (
        f"No difference from {base} is shown{' for the other arms' if others else ''}, but differences up to "
        f"{bound:.4f} are possible ({level}, all arms together). To decide about {study.resolve:g} for {whom}: "
        f"{_needed(len(study.seeds), [difference.seeds_needed for difference in undecided.values()])}"
    )


def _bound(difference: Difference) -> float:
    return max(abs(difference.simultaneous.low), abs(difference.simultaneous.high))


def _needed(seeds: int, needed: list[SeedsNeeded | None]) -> str:
    """How many seeds would decide about all these arms."""
    if seeds == 1:
        return "measure with more than one seed."
    known = [each for each in needed if each is not None]
    if len(known) < len(needed):
        return "measure on more rows. With these, no number of seeds is enough."
    low = max(seeds + 1, *(each.low for each in known))
    high = max(seeds + 1, *(each.high or MOST_SEEDS for each in known))
    more = any(each.high is None for each in known)
    if low == high and not more:
        return f"about {low} seeds are needed."
    most = f"more than {MOST_SEEDS}" if more else high
    return f"{low} to {most} seeds are needed, a range because {seeds} seeds measure their own variance roughly."
