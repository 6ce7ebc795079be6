"""The running metrics of the data set entries, as torchmetrics objects.

Each metric keeps counts, sums or rows and divides once, at the end. So a short last batch gets the right weight, and
several processes compute the same value as one process.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MultilabelConfusionMatrix,
)
from torchmetrics.regression import MeanAbsoluteError, MeanSquaredError, PearsonCorrCoef, SpearmanCorrCoef
from torchmetrics.utilities import dim_zero_cat

from dataset.better import mode
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError, nearest
from heterolora.saliency.problem import Loss
from heterolora.saliency.problem import Metric as ScoringMetric


class _Counts(Metric):
    """A metric of numbers of rows for each class, (classes,): a state for each of `counted`."""

    full_state_update = False
    counted: tuple[str, ...] = ("predicted", "true")
    predicted: Tensor
    true: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for state in self.counted:
            self.add_state(state, default=torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")


class F1(_Counts):
    """F1 of class 1 for two classes, as in GLUE, and the mean F1 of all classes that occur for more, as in SuperGLUE.

    The metric of torchmetrics makes a matrix of all pairs of classes for each batch: 7 GB for 30,000 classes.
    """

    counted = ("hits", "predicted", "true")
    hits: Tensor  # how often each is predicted rightly

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        classes = predictions.argmax(-1) if predictions.ndim > 1 else predictions
        for state, found in (("hits", labels[classes == labels]), ("predicted", classes), ("true", labels)):
            setattr(self, state, getattr(self, state) + torch.bincount(found, minlength=self.num_classes))

    def compute(self) -> Tensor:
        return self.of_classes()[1] if self.num_classes == 2 else self.macro()

    def of_classes(self) -> Tensor:
        """Return the F1 of each class (classes,), 0 for one that does not occur."""
        return 2 * self.hits.float() / (self.predicted + self.true).clamp(min=1).float()

    def macro(self) -> Tensor:
        """Return the mean F1 of all classes that occur."""
        return self.of_classes().sum() / (self.predicted + self.true > 0).sum().clamp(min=1)


class LabelsF1(F1):
    """F1 of rows with any number of labels: of all decisions together, or the mean of all labels that occur."""

    def __init__(self, num_classes: int, micro: bool) -> None:
        super().__init__(num_classes)
        self.micro = micro

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take two tensors (rows, classes). A label is predicted if its probability is above 0.5."""
        predicted, true = logits > 0, labels > 0
        for state, found in (("hits", predicted & true), ("predicted", predicted), ("true", true)):
            setattr(self, state, getattr(self, state) + found.sum(0))

    def compute(self) -> Tensor:
        if self.micro:
            return 2 * self.hits.sum() / (self.predicted + self.true).sum().clamp(min=1)
        return self.macro()


class LabelsConfusion(MultilabelConfusionMatrix):
    """For each label [[neither, predicted alone], [true alone, both]], as `multilabel_confusion_matrix` of sklearn."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take two tensors as `LabelsF1.update`. Torchmetrics takes logits from 0 to 1 for probabilities."""
        super().update((logits > 0).long(), labels.long())


class Matthews(MulticlassConfusionMatrix):
    """Matthews correlation of classes (Gorodkin 2004). It is 0 where it is undefined.

    The metric of torchmetrics returns small nonzero numbers if a model predicts a single class.
    """

    def compute(self) -> Tensor:
        confusion = super().compute().cpu().double()  # (classes, classes): truth, prediction; MPS has no float64
        truth, predicted = confusion.sum(1), confusion.sum(0)
        total = confusion.sum()
        covariance = confusion.trace() * total - truth @ predicted
        spread = (total**2 - truth @ truth) * (total**2 - predicted @ predicted)
        correlation = covariance / spread.sqrt() if spread > 0 else torch.zeros_like(spread)
        return correlation.float().to(self.device)


class OnlyClass(_Counts):
    """The class of all predictions, if they are equal and the labels are not. Otherwise -1."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        self.predicted += torch.bincount(logits.argmax(-1), minlength=self.num_classes)
        self.true += torch.bincount(labels, minlength=self.num_classes)

    def compute(self) -> Tensor:
        alone = bool((self.predicted > 0).sum() == 1) and bool((self.true > 0).sum() > 1)
        return self.predicted.argmax() if alone else torch.tensor(-1, device=self.device)


class Pearson(PearsonCorrCoef):
    """Pearson correlation of real values, accumulated in float64 where the device has it."""

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        super().update(*_real(predictions, labels))


class Spearman(SpearmanCorrCoef):
    """Spearman rank correlation of real values. Ties get their mean rank.

    It is NaN for constant values, as in SciPy. The metric of torchmetrics is 0 then, like a correlation that was found.
    """

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        super().update(predictions.flatten().float(), labels.float())

    def compute(self) -> Tensor:
        correlation = super().compute()
        for values in map(dim_zero_cat, (self.preds, self.target)):
            correlation = correlation.masked_fill((values == values[0]).all(), torch.nan)
        return correlation


class RootMeanSquaredError(MeanSquaredError):
    """Root of the mean squared error of real values, accumulated in float64 where the device has it."""

    def __init__(self) -> None:
        super().__init__(squared=False)

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        super().update(*_real(predictions, labels))


class AbsoluteError(MeanAbsoluteError):
    """Mean absolute error of real values, accumulated as `RootMeanSquaredError`."""

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        super().update(*_real(predictions, labels))


def _real(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    exact = torch.float32 if labels.device.type == "mps" else torch.float64
    return predictions.flatten().to(exact), labels.to(exact)


class WeightedMean(Metric):
    """Σ sums / Σ counts. Keeps one pair of numbers per batch and adds them in float64."""

    full_state_update = False
    sums: list[Tensor]
    counts: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", default=[], dist_reduce_fx="cat")
        self.add_state("counts", default=[], dist_reduce_fx="cat")

    def update(self, sum_: Tensor | float, count: Tensor | int) -> None:
        """Take the sum over a batch, and the number of its summands (rows or tokens)."""
        for batches, value in ((self.sums, sum_), (self.counts, count)):
            batches.append(torch.as_tensor(value, dtype=torch.float32, device=self.device).detach().reshape(1))

    def compute(self) -> Tensor:
        sums, counts = (dim_zero_cat(batches).cpu().double().sum() for batches in (self.sums, self.counts))
        return (sums / counts).float().to(self.device)


class Perplexity(WeightedMean):
    """exp of the mean loss over target tokens. `update` takes the summed loss of a batch and its number of tokens."""

    def compute(self) -> Tensor:
        return super().compute().exp()


class Rouge(WeightedMean):
    """Mean F-measure of one ROUGE score over rows, as in `dataset/official.py`.

    The metric of torchmetrics keeps a list for each row, and hangs if processes have different numbers of rows.
    """

    def __init__(self, key: str) -> None:
        from rouge_score.rouge_scorer import RougeScorer  # which imports nltk and scikit-learn

        super().__init__()
        self.key = key
        self.scorer = RougeScorer([key], use_stemmer=True)

    def update(self, generated: Sequence[str], references: Sequence[str]) -> None:  # type: ignore[override]
        """Take the generated texts and one reference for each."""
        pairs = zip(references, generated, strict=True)
        super().update(sum(self.scorer.score(*pair)[self.key].fmeasure for pair in pairs), len(references))


class ChoiceAccuracy(WeightedMean):
    """The share of rows of multiple choice whose right choice is picked. `way` is the column of the picks to use."""

    def __init__(self, way: int) -> None:
        super().__init__()
        self.way = way

    def update(self, picks: Tensor, right: Tensor) -> None:  # type: ignore[override]
        super().update((picks[:, self.way] == right).sum(), len(right))


MOST_IN_CONFUSION = 200  # classes; a matrix of pairs of very many would fill the memory

_BUILD: dict[str, Callable[[int], Metric]] = {
    "accuracy": lambda num_labels: MulticlassAccuracy(num_labels, average="micro"),
    "f1": F1,
    "macro_f1": F1,  # the same, where a reader does not know the number of classes
    "matthews": Matthews,
    "pearson": lambda _: Pearson(),
    "spearman": lambda _: Spearman(),
    "rmse": lambda _: RootMeanSquaredError(),
    "mae": lambda _: AbsoluteError(),
    "perplexity": lambda _: Perplexity(),
    **{key: partial(lambda key, _: Rouge(key), key) for key in ("rouge1", "rouge2", "rougeL")},
}
_OF_SETS: dict[str, Callable[[int], Metric]] = {  # multi-label
    "micro_f1": partial(LabelsF1, micro=True),
    "macro_f1": partial(LabelsF1, micro=False),
}
_OF_CHOICES = {"accuracy": 0, "accuracy_norm": 1}  # metrics of multiple choice -> column of the picks


def build(names: Sequence[str], num_labels: int, choices: bool = False, multi_label: bool = False) -> MetricCollection:
    """Return one collection of the metrics `names`, which must take the same arguments in `update`.

    `choices` says that the data are multiple choice, and `multi_label` that a row has any number of labels.

    | names | update(…, …) |
    | --- | --- |
    | accuracy, f1, macro_f1, matthews | logits (rows, num_labels) or class ids (rows,), labels (rows,) |
    | micro_f1, macro_f1 with `multi_label` | logits (rows, num_labels), labels (rows, num_labels) as 1 or 0 |
    | pearson, spearman, rmse, mae | values (rows,) or (rows, 1), labels (rows,) |
    | accuracy, accuracy_norm with `choices` | picks (rows, 2): places by score and by normalised score, right places |
    | perplexity | loss summed over the batch's target tokens, number of these tokens |
    | rouge1, rouge2, rougeL | generated texts, reference texts |

    A batch has at least one row. A process may have no batch. `compute()` returns a scalar tensor for each name. A
    correlation with constant values is NaN.

    Raises UserError if a name is not known.
    """
    # Groups of metrics with equal states save little, and torchmetrics forms them from the values of the first batch.
    made: dict[str, Metric | MetricCollection] = {}
    for name in names:
        if choices:
            made[name] = ChoiceAccuracy(_OF_CHOICES[_known(name, _OF_CHOICES)])
        else:
            known = _OF_SETS if multi_label else _BUILD
            made[name] = known[_known(name, known)](num_labels)
    return MetricCollection(made, compute_groups=False)


class Figures(nn.Module):
    """The loss and the metrics of a split in one evaluation, over all batches and processes."""

    def __init__(self, spec: DatasetSpec) -> None:
        super().__init__()
        self.loss = WeightedMean()
        self.order = spec.metrics  # the first one selects the best checkpoint; torchmetrics sorts by name
        self.metrics = build(spec.metrics, spec.num_labels, spec.choices is not None, spec.multi_label)
        self.only_class = OnlyClass(spec.num_labels) if spec.single_label else None
        counted = (spec.single_label or spec.multi_label) and spec.num_labels <= MOST_IN_CONFUSION
        matrix = LabelsConfusion if spec.multi_label else MulticlassConfusionMatrix
        self.confusion = matrix(spec.num_labels, validate_args=False) if counted else None

    def update(self, loss: Loss, predicted: Any, true: Any) -> None:
        self.loss.update(loss.total, loss.count)
        self.metrics.update(predicted, true)
        for of_classes in (self.only_class, self.confusion):
            if of_classes is not None:
                of_classes.update(predicted, true)

    def taken(self) -> tuple[dict[str, Tensor], int, Tensor | None]:
        """Return the values by name, the class of all predictions or -1 (see `OnlyClass`), and how often each class
        was predicted for each (see also `LabelsConfusion`). Starts again.
        """
        metrics = self.metrics.compute()
        values = {"loss": self.loss.compute(), **{name: metrics[name] for name in self.order}}
        only_class = -1 if self.only_class is None else int(self.only_class.compute())
        confusion = None if self.confusion is None else self.confusion.compute().cpu()
        for each in (self.loss, self.metrics, self.only_class, self.confusion):
            if each is not None:
                each.reset()
        return values, only_class, confusion


def scoring_metric(name: str, num_labels: int, tolerance: float = 0.01, multi_label: bool = False) -> ScoringMetric:
    """Return `loss` or a classification metric in the form that `alpha_test` needs.

    `tolerance` is that of the returned metric. Raises UserError if the name is not known.
    """
    if name in ("loss", "accuracy"):
        return ScoringMetric(name, tolerance)
    known = _OF_SETS if multi_label else _BUILD
    build_one = known[_known(name, known)]
    return ScoringMetric(name, tolerance, lambda device: build_one(num_labels).to(device), mode(name) == "max")


def _known(name: str, known: Collection[str] = _BUILD.keys()) -> str:
    if name not in known:
        raise UserError(f"metric '{name}' is not known", nearest(name, known))
    return name
