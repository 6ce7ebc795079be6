"""Where a dynamic run's scores come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import pytorch_lightning as pl

from heterolora.saliency.from_training import TrainingGradients, recorded
from heterolora.saliency.problem import Batch, Track, untracked
from heterolora.saliency.score import score
from model.task.fine_tuning import FineTuning
from model.task.scoring import batch_count, scoring_batches, scoring_problem


class DedicatedScores:
    """Scores from batches of their own: the first of the training set, prepared once and kept.

    Args:
        heuristic: its name.
        limit: `--imp-limit-test-batches`: an int counts batches over all processes, a float is a share of the data.
        tolerance: `--metric-red-tolerance`.
        track: shows progress.
        note: tells the user something.
    """

    def __init__(
        self,
        heuristic: str,
        limit: int | float,
        tolerance: float,
        track: Track = untracked,
        note: Callable[[str], None] = print,
    ) -> None:
        self.heuristic, self.limit, self.tolerance = heuristic, limit, tolerance
        self.track, self.note = track, note
        self._batches: list[Batch] | None = None

    def scores(self, trainer: pl.Trainer, task: FineTuning) -> Mapping[str, float]:
        if self._batches is None:
            self._batches = scoring_batches(trainer, self.limit, self.note)
        precision: Callable[[], AbstractContextManager[Any]] = trainer.precision_plugin.forward_context
        problem = scoring_problem(task, self._batches, self.tolerance, self.track, precision)
        return score(self.heuristic, problem)

    def switched(self) -> None:
        """Nothing to do: training is left alone."""

    def batch_starts(self, trainer: pl.Trainer, task: FineTuning, batch: int, until_due: int) -> None:
        """Nothing to do: training is left alone."""

    def window_ends(self, trainer: pl.Trainer, task: FineTuning) -> None:
        """Nothing to do: training is left alone."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state: the batches are the same in every run."""


class TrainingScores:
    """Scores from the last training batches before they are needed; see `TrainingGradients`.

    Args:
        gradients: what sums them up.
        limit: batches before the scores are needed: an int counts them, a float is a share of the training set.
        first: where scores come from as long as no training batch has given any.
    """

    def __init__(self, gradients: TrainingGradients, limit: int | float, first: DedicatedScores) -> None:
        self.gradients, self.limit, self.first = gradients, limit, first

    def scores(self, trainer: pl.Trainer, task: FineTuning) -> Mapping[str, float]:
        return self.gradients.scores() if self.gradients.windows else self.first.scores(trainer, task)

    def switched(self) -> None:
        self.gradients.stop()
        self.gradients.reset()

    def batch_starts(self, trainer: pl.Trainer, task: FineTuning, batch: int, until_due: int) -> None:
        limit, _ = batch_count(self.limit, trainer.num_training_batches)
        if recorded(batch, until_due, limit, trainer.accumulate_grad_batches):
            self.gradients.start()

    def window_ends(self, trainer: pl.Trainer, task: FineTuning) -> None:
        if self.gradients.recording:
            scaler = getattr(trainer.precision_plugin, "scaler", None)
            self.gradients.collect(None if scaler is None else scaler.get_scale())

    def state_dict(self) -> dict[str, Any]:
        return self.gradients.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gradients.load_state_dict(state)
