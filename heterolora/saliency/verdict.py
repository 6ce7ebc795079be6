"""Whether a metric holds: is it, by no more than a tolerance, worse than it was?

A judge is told the network's results batch by batch, in any order, and may be certain before the last one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch

from heterolora.distributed import sum_numbers_over_ranks
from heterolora.errors import UserError
from heterolora.saliency.problem import Batch, Metric, Result

Evaluated = tuple[Batch, Result]


class Judge(ABC):
    """Compares evaluations with a first one.

    The processes share the batches out. They go through them in rounds, each with a batch of its own or, where it has
    none left, with None, and come to the same verdict after the same round.

    Args:
        metric: what is compared, and how much worse it may be.
        device: where the results are.
    """

    higher_is_better = False

    def __init__(self, metric: Metric, device: torch.device) -> None:
        self.metric, self.device = metric, device
        self.limit = math.nan

    def first(self, rounds: Iterable[Evaluated | None]) -> None:
        """The evaluation that all others are compared with.

        Raises:
            UserError: the metric is not finite.
        """
        self.start()
        for evaluated in rounds:
            self.add(evaluated)
        value = self.value()
        if not math.isfinite(value):
            raise UserError(
                f"{self.metric.name} is {value} over the scoring batches",
                "give more --imp-limit-test-batches, or look at the loss and at --precision",
            )
        slack = self.metric.tolerance * abs(value)
        self.limit = value - slack if self.higher_is_better else value + slack

    def holds(self, rounds: Iterable[Evaluated | None]) -> bool:
        """The verdict on another evaluation, which is left as soon as there is one."""
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
        """Forget the evaluation before."""

    @abstractmethod
    def add(self, evaluated: Evaluated | None) -> None:
        """One round."""

    @abstractmethod
    def value(self) -> float:
        """The metric over all rounds of all processes."""

    def certain(self) -> bool | None:
        """The verdict, if no further round can change it."""
        return None

    def doubt(self, batch: Batch, result: Result) -> float:
        """How likely the batch is to show a difference, compared with others: it is asked first."""
        return 0.0


class AccuracyJudge(Judge):
    """Right answers are whole numbers: what is still to come can add none, or as many as there are rows."""

    higher_is_better = True

    def start(self) -> None:
        self.right_here = self.rows_here = 0
        self.right = self.rows = 0.0  # everywhere

    def add(self, evaluated: Evaluated | None) -> None:
        if evaluated is not None:
            batch, result = evaluated
            right = result.logits.argmax(-1) == batch["labels"]
            self.right_here += int(right.sum())
            self.rows_here += len(right)
        self.right, self.rows = sum_numbers_over_ranks((self.right_here, self.rows_here), self.device)

    def first(self, rounds: Iterable[Evaluated | None]) -> None:
        super().first(rounds)
        self.all_rows = self.rows

    def value(self) -> float:
        return self.right / self.rows

    def certain(self) -> bool | None:
        if self.within(self.right / self.all_rows):
            return True
        left = self.all_rows - self.rows
        return None if self.within((self.right + left) / self.all_rows) else False

    def doubt(self, batch: Batch, result: Result) -> float:
        """Right answers, each counted the more the smaller its margin over the next best is."""
        labels = batch["labels"].unsqueeze(-1)
        of_label = result.logits.gather(-1, labels).squeeze(-1)
        of_others = result.logits.scatter(-1, labels, -math.inf).amax(-1)
        margin = of_label - of_others
        return float(torch.where(margin > 0, (-margin).exp(), 0.0).sum())


class LossJudge(Judge):
    """Losses are not negative: what is still to come can only add to their sum."""

    def start(self) -> None:
        self.totals: list[float] = []  # of each batch here
        self.counts: list[float] = []
        self.total = self.count = 0.0  # everywhere

    def add(self, evaluated: Evaluated | None) -> None:
        if evaluated is not None:
            _, result = evaluated
            self.totals.append(float(result.total))
            self.counts.append(float(result.count))
        # fsum is exact, so that the order of the batches does not matter
        here = math.fsum(self.totals), math.fsum(self.counts)
        self.total, self.count = sum_numbers_over_ranks(here, self.device)

    def first(self, rounds: Iterable[Evaluated | None]) -> None:
        super().first(rounds)
        self.full_count = self.count

    def value(self) -> float:
        return self.total / self.count

    def certain(self) -> bool | None:
        return False if self.total / self.full_count > self.limit else None

    def doubt(self, batch: Batch, result: Result) -> float:
        return float(result.total)


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
            batch, result = evaluated
            self.running.update(result.logits, batch["labels"])

    def value(self) -> float:
        return float(self.running.compute())


def judge(metric: Metric, device: torch.device) -> Judge:
    """The judge of that metric."""
    kinds: dict[str, type[Judge]] = {"accuracy": AccuracyJudge, "loss": LossJudge}
    return kinds.get(metric.name, RunningMetricJudge)(metric, device)
