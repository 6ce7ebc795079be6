"""The answer to the question how small an adapter can be, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from heterolora.common.checks import present
from tools.studies.spec import Study
from tools.studies.statistics import MOST_SEEDS, Difference
from tools.studies.summary import ArmResult, Comparison


def reference_of(study: Study, comparison: Comparison) -> ArmResult:
    """The largest arm, which the others are compared with."""
    return next(arm for arm in comparison.arms if arm.name == study.baseline)


def enough(study: Study, comparison: Comparison) -> list[ArmResult]:
    """The smaller arms that are shown to be not worse, from the largest to the smallest."""
    smaller = [arm for arm in comparison.arms if arm.against is not None]
    return list(takewhile(lambda arm: present(arm.against).corrected <= 1 - study.confidence, smaller))


def result(study: Study, comparison: Comparison, suggests: str) -> Iterator[str]:
    """The smallest arm that is enough, and the next one. `suggests` begins a claim."""
    largest = reference_of(study, comparison)
    smaller = [arm for arm in comparison.arms if arm.against is not None]
    found = enough(study, comparison)
    margin = f"{study.resolve:g} ({study.confidence:.0%})"
    if found:
        part = f"with {fraction(found[-1], largest)} of the parameters"
        yield f"{suggests}{found[-1].name} is not worse than {largest.name} by more than {margin}, {part}."
    else:
        yield f"No smaller arm is shown to be not worse than {largest.name} by more than {margin}."
    if left := smaller[len(found) :]:
        again = "It also suggests that " if suggests and found else suggests
        yield _next(study, left[0], largest, again)
    else:
        yield "It is the smallest arm: smaller ones were not tried."


def _next(study: Study, arm: ArmResult, largest: ArmResult, suggests: str) -> str:
    """The largest arm that is not shown to be enough."""
    against = present(arm.against)
    found = against.interval
    who = f"{arm.name}, with {fraction(arm, largest)} of the parameters,"
    if found.high < 0:
        return f"{suggests}{who} is worse by {-found.estimate:.4f} ({-found.high:.4f} to {-found.low:.4f})."
    return f"{who} may be worse by up to {-found.low:.4f}. {_to_decide(study, against)}"


def _to_decide(study: Study, difference: Difference) -> str:
    if difference.interval.estimate <= -study.resolve:
        return f"As measured, it is worse by {-difference.interval.estimate:.4f}."
    needed = difference.seeds_needed
    if needed is None:
        return "To decide, measure on more rows or with more than one seed."
    most = f"more than {MOST_SEEDS}" if needed.high is None else needed.high
    return f"To decide, if the difference is as measured: {needed.low} to {most} seeds."


def fraction(arm: ArmResult, largest: ArmResult) -> str:
    """The parameters of an arm as a part of those of the largest: 1/8, or 37%."""
    part = arm.parameters / largest.parameters
    whole = round(1 / part)
    return f"1/{whole}" if whole > 1 and abs(part * whole - 1) < 0.02 else f"{part:.0%}"
