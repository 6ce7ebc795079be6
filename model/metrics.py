"""Running metrics: a name from a data set's entry → a torchmetrics object.

Each holds counts, sums or rows and divides once, at the end, so that a short last batch weighs what it should and
several processes get the figure that one process gets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix, MulticlassF1Score
from torchmetrics.regression import PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.utilities import dim_zero_cat

from heterolora.errors import UserError, nearest
from heterolora.saliency.problem import Metric as ScoringMetric


class F1(MulticlassF1Score):
    """F1 of class 1 with two classes, as GLUE defines it; the mean of the classes' F1 with more, as SuperGLUE does."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="none" if num_classes == 2 else "macro")

    def compute(self) -> Tensor:
        f1 = super().compute()
        return f1[1] if self.num_classes == 2 else f1


class Matthews(MulticlassConfusionMatrix):
    """Matthews' correlation of classes (Gorodkin 2004), 0 where it is undefined.

    torchmetrics' own one returns small numbers other than 0 while a model predicts a single class.
    """

    def compute(self) -> Tensor:
        confusion = super().compute().double()  # (classes, classes): truth, prediction
        truth, predicted = confusion.sum(1), confusion.sum(0)
        total = confusion.sum()
        covariance = confusion.trace() * total - truth @ predicted
        spread = (total**2 - truth @ truth) * (total**2 - predicted @ predicted)
        return (covariance / spread.sqrt() if spread > 0 else torch.zeros_like(spread)).float()


class Pearson(PearsonCorrCoef):
    """Pearson's correlation of real values, accumulated in float64."""

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """predictions (rows,) or (rows, 1), labels (rows,)."""
        super().update(predictions.flatten().double(), labels.double())


class Spearman(SpearmanCorrCoef):
    """Spearman's rank correlation of real values; equal values share their mean rank."""

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """predictions (rows,) or (rows, 1), labels (rows,)."""
        super().update(predictions.flatten().float(), labels.float())


class WeightedMean(Metric):
    """Σ sums / Σ counts. It keeps one pair of numbers a batch and adds them up in float64."""

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", default=[], dist_reduce_fx="cat")
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, sum_: Tensor | float, count: Tensor | int) -> None:
        """Sum of a batch, and the number of things (rows, tokens) that it is a sum over."""
        for batches, value in ((self.sums, sum_), (self.counts, count)):
            batches.append(torch.as_tensor(value, dtype=torch.float32, device=self.device).detach().reshape(1))

    def compute(self) -> Tensor:
        sums, counts = (dim_zero_cat(batches).cpu().double().sum() for batches in (self.sums, self.counts))
        return (sums / counts).float().to(self.device)


class Perplexity(WeightedMean):
    """exp of the mean loss over target tokens; update with the loss summed over a batch's tokens, and their number."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class Rouge(WeightedMean):
    """Mean F-measure of one ROUGE score over rows, as `dataset/official/rouge` computes it.

    torchmetrics' own one keeps a list for each row and waits for ever where processes hold different numbers of rows.
    """

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key
        self.scorer = RougeScorer([key], use_stemmer=True)

    def update(self, generated: Sequence[str], references: Sequence[str]) -> None:
        """Texts, one reference for each generated one."""
        pairs = zip(references, generated, strict=True)
        super().update(sum(self.scorer.score(*pair)[self.key].fmeasure for pair in pairs), len(references))


_BUILD: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda num_labels: MulticlassAccuracy(num_labels, average="micro"),
    "f1": F1,
    "matthews": Matthews,
    "pearson": lambda _: Pearson(),
    "spearman": lambda _: Spearman(),
    "perplexity": lambda _: Perplexity(),
    "rouge1": lambda _: Rouge("rouge1"),
    "rouge2": lambda _: Rouge("rouge2"),
    "rougeL": lambda _: Rouge("rougeL"),
}


def build(names: Sequence[str], num_labels: int) -> MetricCollection:
    """One collection for `names`, which all take the same pair of arguments in `update`.

    | names | update(…, …) |
    | --- | --- |
    | accuracy, f1, matthews | logits (rows, num_labels) or class ids (rows,), labels (rows,) |
    | pearson, spearman | values (rows,) or (rows, 1), labels (rows,) |
    | perplexity | loss summed over the batch's target tokens, number of these tokens |
    | rouge1, rouge2, rougeL | generated texts, reference texts |

    A batch has at least one row; a process may have no batch. `compute()` returns name → scalar tensor; a correlation
    with constant values is NaN.

    Raises:
        UserError: a name is not known.
    """
    # Grouping metrics with equal states saves little, and decides by the first batch's values which ones are equal.
    return MetricCollection({_known(name): _BUILD[name](num_labels) for name in names}, compute_groups=False)


def mode(name: str) -> Literal["max", "min"]:
    """Whether a higher or a lower value is better.

    Raises:
        UserError: the name is not known.
    """
    return "min" if _known(name) == "perplexity" else "max"


def scoring_metric(name: str, num_labels: int, tolerance: float = 0.01) -> ScoringMetric:
    """The metric `name` as `alpha_test` needs it.

    Args:
        name: `loss`, or the name of a classification metric.
        num_labels: width of the classification head.
        tolerance: see `heterolora.saliency.problem.Metric`.

    Raises:
        UserError: the name is not known.
    """
    if name in ("loss", "accuracy"):
        return ScoringMetric(name, tolerance)

    def running(device: torch.device) -> Metric:
        return _BUILD[name](num_labels).to(device)

    return ScoringMetric(_known(name), tolerance, running, mode(name) == "max")


def _known(name: str) -> str:
    if name not in _BUILD:
        raise UserError(f"metric '{name}' is not known", nearest(name, _BUILD))
    return name
