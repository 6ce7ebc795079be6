"""The benchmark metrics in the repository, against numbers worked out by hand from their definitions."""

import math
import socket

import pytest

from dataset.official import OFFICIAL_METRICS, official_metric
from heterolora.common.errors import UserError

PREDICTIONS = [1, 0, 1, 1, 0, 0, 1, 0]
REFERENCES = [1, 0, 0, 1, 0, 1, 1, 1]  # true positives 3, false positives 1, false negatives 2, true negatives 2


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a metric reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glue/cola", {"matthews": (3 * 2 - 1 * 2) / math.sqrt(4 * 5 * 3 * 4)}),
        *[(f"glue/{name}", {"accuracy": 5 / 8}) for name in ("sst2", "mnli", "mnli_mismatched", "qnli", "rte", "wnli")],
        *[(f"glue/{name}", {"accuracy": 5 / 8, "f1": 6 / 9}) for name in ("mrpc", "qqp")],
        *[(f"super_glue/{name}", {"accuracy": 5 / 8}) for name in ("boolq", "copa", "wic")],
    ],
)
def test_classification(name: str, expected: dict[str, float]) -> None:
    assert official_metric(name)(PREDICTIONS, REFERENCES) == pytest.approx(expected)


def test_cb_averages_f1_over_its_classes() -> None:
    scores = official_metric("super_glue/cb")([0, 0, 1, 2, 2], [0, 1, 1, 2, 0])
    assert scores == pytest.approx({"accuracy": 3 / 5, "f1": (1 / 2 + 2 / 3 + 2 / 3) / 3})


def test_stsb_correlates_real_values() -> None:
    scores = official_metric("glue/stsb")([0.5, 2.25, 2.5, 9.0], [0.0, 1.0, 3.0, 2.0])
    x, y = [0.5 - 3.5625, 2.25 - 3.5625, 2.5 - 3.5625, 9 - 3.5625], [-1.5, -0.5, 1.5, 0.5]
    pearson = sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert scores == pytest.approx({"pearson": pearson, "spearman": 1 - 6 * 2 / (4 * 15)})


@pytest.mark.parametrize(
    ("predictions", "references"), [([0.5], [1.0]), ([], []), ([2.0, 2.0], [1.0, 3.0]), ([1.0, 3.0], [2.0, 2.0])]
)
def test_a_correlation_that_is_not_defined(predictions: list[float], references: list[float]) -> None:
    scores = OFFICIAL_METRICS["glue/stsb"](predictions, references)
    assert scores.keys() == {"pearson", "spearman"}
    assert all(map(math.isnan, scores.values()))


def test_rouge_counts_stemmed_overlaps() -> None:
    scores = official_metric("rouge")(
        ["The cats sat down.", "something else"], ["a cat sat on the mat", "nothing in common"]
    )
    # "the", "cat" and "sat" of 4 and 6 words; the one pair "cat sat" of 3 and 5; the longest common run "cat … sat".
    expected = {"rouge1": 2 * 3 / 10 / 2, "rouge2": 2 * 1 / 8 / 2, "rougeL": 2 * 2 / 10 / 2}
    assert scores == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("gleu/rte", "did you mean 'glue/rte'?"),
        ("glue/rta", "did you mean 'glue/rte'?"),
        ("glue", "glue/cola, glue/mnli"),
        ("super_glue/record", "super_glue/boolq, super_glue/cb"),
        ("rouge/xsum", "did you mean 'rouge'?"),
    ],
)
def test_unknown_names_say_what_there_is(name: str, advice: str) -> None:
    with pytest.raises(UserError, match=f"official metric '{name}' is not known") as error:
        official_metric(name)
    assert advice in error.value.expected
