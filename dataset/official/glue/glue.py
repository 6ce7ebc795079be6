"""The metrics of GLUE (Wang et al. 2018, arXiv:1804.07461), as each task's leaderboard computes them."""

from collections.abc import Callable

import datasets
import evaluate
from scipy import stats
from sklearn import metrics


def _accuracy(predictions: list[int], references: list[int]) -> dict[str, float]:
    return {"accuracy": float(metrics.accuracy_score(references, predictions))}


def _accuracy_and_f1(predictions: list[int], references: list[int]) -> dict[str, float]:
    """F1 of class 1, "is a paraphrase" and "is a duplicate"; 0 where it is undefined."""
    f1 = metrics.f1_score(references, predictions, zero_division=0)
    return {**_accuracy(predictions, references), "f1": float(f1)}


def _matthews(predictions: list[int], references: list[int]) -> dict[str, float]:
    return {"matthews": float(metrics.matthews_corrcoef(references, predictions))}


def _correlations(predictions: list[float], references: list[float]) -> dict[str, float]:
    return {
        "pearson": float(stats.pearsonr(predictions, references).statistic),
        "spearman": float(stats.spearmanr(predictions, references).statistic),
    }


_COMPUTE: dict[str, Callable[[list, list], dict[str, float]]] = {
    "cola": _matthews,
    "sst2": _accuracy,
    "mrpc": _accuracy_and_f1,
    "qqp": _accuracy_and_f1,
    "stsb": _correlations,
    "mnli": _accuracy,
    "mnli_mismatched": _accuracy,
    "qnli": _accuracy,
    "rte": _accuracy,
    "wnli": _accuracy,
}


class Glue(evaluate.Metric):
    """`compute(predictions, references)`: class ids, or real-valued similarities for `stsb`."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in _COMPUTE:
            raise KeyError(f"configurations of glue: {', '.join(_COMPUTE)}")
        value = datasets.Value("float64" if self.config_name == "stsb" else "int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Wang et al. 2018, arXiv:1804.07461",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        return _COMPUTE[self.config_name](predictions, references)
