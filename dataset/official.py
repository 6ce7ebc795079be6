"""The official metrics of the benchmarks, as `evaluate` metrics. Nothing is downloaded."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from heterolora.common.errors import UserError, nearest

if TYPE_CHECKING:
    import evaluate


def _accuracy(predictions: list[int], references: list[int]) -> dict[str, float]:
    from sklearn.metrics import accuracy_score

    return {"accuracy": float(accuracy_score(references, predictions))}


def _accuracy_and_f1(predictions: list[int], references: list[int], average: str = "binary") -> dict[str, float]:
    """Return the accuracy and the F1 of class 1, or the mean F1 of all classes. An undefined F1 counts as 0."""
    from sklearn.metrics import f1_score

    f1 = f1_score(references, predictions, average=average, zero_division=0)
    return {**_accuracy(predictions, references), "f1": float(f1)}


def _matthews(predictions: list[int], references: list[int]) -> dict[str, float]:
    from sklearn.metrics import matthews_corrcoef

    return {"matthews": float(matthews_corrcoef(references, predictions))}


def _correlations(predictions: list[float], references: list[float]) -> dict[str, float]:
    """Return NaN for a correlation that is not defined: of one row, or of constant values."""
    from scipy import stats

    if min(len(set(predictions)), len(set(references))) < 2:
        return {"pearson": math.nan, "spearman": math.nan}
    return {
        "pearson": float(stats.pearsonr(predictions, references).statistic),
        "spearman": float(stats.spearmanr(predictions, references).statistic),
    }


def _rouge(predictions: list[str], references: list[str]) -> dict[str, float]:
    """Return the mean F-measures, with Porter stemming. ROUGE-Lsum is left out: it needs a sentence splitter."""
    from rouge_score.rouge_scorer import RougeScorer

    keys = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(keys, use_stemmer=True)
    rows = [scorer.score(reference, text) for reference, text in zip(references, predictions, strict=True)]
    return {key: sum(row[key].fmeasure for row in rows) / len(rows) for key in keys}


# GLUE: Wang et al. 2018, arXiv:1804.07461. SuperGLUE: Wang et al. 2019, arXiv:1905.00537. ROUGE: Lin 2004, W04-1013.
OFFICIAL_METRICS: Mapping[str, Callable[[list, list], dict[str, float]]] = {
    "glue/cola": _matthews,
    "glue/stsb": _correlations,
    **dict.fromkeys(("glue/mrpc", "glue/qqp"), _accuracy_and_f1),
    **{f"glue/{name}": _accuracy for name in ("sst2", "mnli", "mnli_mismatched", "qnli", "rte", "wnli")},
    **{f"super_glue/{name}": _accuracy for name in ("boolq", "copa", "wic")},
    "super_glue/cb": partial(_accuracy_and_f1, average="macro"),
    "rouge": _rouge,
}


def official_metric(name: str) -> evaluate.Metric:
    """Return the official metric of a task, e.g. `glue/rte`, `super_glue/cb` or `rouge`.

    Its `compute(predictions=…, references=…)` takes class ids (real numbers for `glue/stsb`, texts for `rouge`) and
    returns the scores by name. It does not communicate: gather the rows of all processes first.

    Raises UserError if there is no such metric.
    """
    import datasets
    import evaluate

    if name not in OFFICIAL_METRICS:
        raise UserError(f"official metric '{name}' is not known", nearest(name, OFFICIAL_METRICS))
    value = datasets.Value({"glue/stsb": "float64", "rouge": "string"}.get(name, "int64"))

    class OfficialMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features({"predictions": value, "references": value})
            return evaluate.MetricInfo(description=name, citation="", features=features)

        def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
            return OFFICIAL_METRICS[name](predictions, references)

    with tempfile.TemporaryDirectory() as empty:  # `evaluate` makes a folder, and writes nothing into it
        return OfficialMetric(name, keep_in_memory=True, cache_dir=empty)
