"""The metrics of SuperGLUE (Wang et al. 2019, arXiv:1905.00537) for its tasks with one label a row."""

import datasets
import evaluate
from sklearn import metrics

_CONFIGS = ("boolq", "cb", "copa", "wic")


class SuperGlue(evaluate.Metric):
    """`compute(predictions, references)`: class ids. `cb` adds the unweighted mean F1 of its three classes."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in _CONFIGS:
            raise KeyError(f"configurations of super_glue: {', '.join(_CONFIGS)}")
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="Wang et al. 2019, arXiv:1905.00537",
            features=datasets.Features({"predictions": label, "references": label}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        scores = {"accuracy": float(metrics.accuracy_score(references, predictions))}
        if self.config_name == "cb":
            scores["f1"] = float(metrics.f1_score(references, predictions, average="macro", zero_division=0))
        return scores
