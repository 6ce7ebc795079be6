"""How much the scores depend on the scoring batches: the rank correlation of the scores of two halves of them."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import spearmanr

from heterolora.choosing.allocation import Scored

UNSTABLE = 0.7  # a lower correlation gets a warning


def rank_correlation(items: Sequence[Scored]) -> float | None:
    """Spearman's correlation of the two halves. None if there are no halves, or all scores of one are equal."""
    if len(items) < 2 or not all(item.halves for item in items):
        return None
    first, second = zip(*(item.halves for item in items), strict=True)
    if len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(spearmanr(first, second).statistic)


def agreement_in_words(correlation: float) -> str:
    """A line for the user."""
    text = f"stability: the scores of two halves of the batches have rank correlation {correlation:.2f}"
    return f"{text}; more --imp-limit-test-batches would make the choice firmer" if correlation < UNSTABLE else text
