"""Whether a metric holds: it is not worse than before by more than a tolerance.

A judge gets the network's results batch by batch, in any order, and may be certain before the last batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor

from heterolora.common.distributed import sum_numbers_over_ranks
from heterolora.common.errors import NotFiniteError
from heterolora.saliency.problem import Batch, Loss, Metric

Evaluated = tuple[Batch, Loss]


class Judge(ABC):
    """Compares evaluations with a first one.

    The processes share the batches. They work in rounds; in each round a process has one batch or, if it has no batch
    left, None. All processes reach the same verdict after the same round.
    """

    higher_is_better = False

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric, self.device = metric, device
        self.limit = math.nan

    def first(self, rounds: Iterable[Evaluated | None]) -> None:
        """The evaluation that all others are compared with. Raises UserError if the metric is not finite."""
        self.start()
        for evaluated in rounds:
            self.add(evaluated)
        value = self.value()
        if not math.isfinite(value):
            raise NotFiniteError(
                f"{self.metric.name} is {value} over the scoring batches",
                "use more scoring batches, or check the loss and the precision",
            )
        slack = self.metric.tolerance * abs(value)
        self.limit = value - slack if self.higher_is_better else value + slack

    def holds(self, rounds: Iterable[Evaluated | None]) -> bool:
        """The verdict on another evaluation, which stops as soon as the verdict is certain."""
        self.start()
        for evaluated in rounds:
            self.add(evaluated)
            verdict = self.certain()
            if verdict is not None:
                return verdict
        return self.within(self.value())

    def within(self, value: float) -> bool:
        return value >= self.limit if self.higher_is_better else value <= self.limit

    @abstractmethod
    def start(self) -> None:
        """Delete the previous evaluation."""

    @abstractmethod
    def add(self, evaluated: Evaluated | None) -> None:
        """Add one round."""

    @abstractmethod
    def value(self) -> float:
        """The metric over all rounds of all processes."""

    def certain(self) -> bool | None:
        """The verdict, if no further round can change it."""
        return None

    def doubt(self, batch: Batch, loss: Loss) -> float:
        """How likely the batch shows a difference, compared with other batches. Likely batches come first."""
        return 0.0


class MeanJudge(Judge):
    """The metric is a sum over all batches, divided by a count."""

    def start(self) -> None:
        self.totals: list[float] = []  # of each batch of this process
        self.counts: list[float] = []
        self.total = self.count = 0.0  # over all processes

    def add(self, evaluated: Evaluated | None) -> None:
        if evaluated is not None:
            total, count = self.parts(*evaluated)
            self.totals.append(float(total))
            self.counts.append(float(count))
        # fsum is exact, so the order of the batches does not matter
        here = math.fsum(self.totals), math.fsum(self.counts)
        self.total, self.count = sum_numbers_over_ranks(here, self.device)

    def first(self, rounds: Iterable[Evaluated | None]) -> None:
        super().first(rounds)
        self.full_count = self.count

    def value(self) -> float:
        return self.total / self.count

    @abstractmethod
    def parts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor | int]:
        """The part of one batch in the sum, and in the count."""


class AccuracyJudge(MeanJudge):
    """Correct answers are counted. The remaining rows can add between none and all of them."""

    higher_is_better = True

    def parts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor | int]:
        right = loss.logits.argmax(-1) == batch["labels"]
        return right.sum(), len(right)

    def certain(self) -> bool | None:
        if self.within(self.total / self.full_count):
            return True
        left = self.full_count - self.count
        return None if self.within((self.total + left) / self.full_count) else False

    def doubt(self, batch: Batch, loss: Loss) -> float:
        """Correct answers; an answer counts more if its margin over the next best is small."""
        labels = batch["labels"].unsqueeze(-1)
        of_label = loss.logits.gather(-1, labels).squeeze(-1)
        of_others = loss.logits.scatter(-1, labels, -math.inf).amax(-1)
        margin = of_label - of_others
        return float(torch.where(margin > 0, (-margin).exp(), 0.0).sum())


class LossJudge(MeanJudge):
    """The mean loss. If losses are never negative, the remaining rounds can only increase their sum."""

    def parts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Tensor | int]:
        return loss.total, loss.count

    def certain(self) -> bool | None:
        return False if self.metric.nonnegative and self.total / self.full_count > self.limit else None

    def doubt(self, batch: Batch, loss: Loss) -> float:
        return float(loss.total)


class RunningMetricJudge(Judge):
    """Any other metric; the verdict is certain after the last batch."""

    def __init__(self, metric: Metric, device: torch.device) -> None:
        super().__init__(metric, device)
        if metric.running is None:
            raise ValueError(f"the metric {metric.name} needs `running`")
        self.running = metric.running(device)
        self.higher_is_better = metric.higher_is_better

    def start(self) -> None:
        self.running.reset()

    def add(self, evaluated: Evaluated | None) -> None:
        if evaluated is not None:
            batch, loss = evaluated
            self.running.update(loss.logits, batch["labels"])

    def value(self) -> float:
        return float(self.running.compute())


def judge(metric: Metric, device: torch.device) -> Judge:
    kinds: dict[str, type[Judge]] = {"accuracy": AccuracyJudge, "loss": LossJudge}
    return kinds.get(metric.name, RunningMetricJudge)(metric, device)
