"""The two sources of scores of a dynamic run: separate batches, and the training batches themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytorch_lightning as pl

from heterolora.common.checks import present
from heterolora.saliency.from_training import TrainingGradients, recorded
from heterolora.saliency.problem import Batch, Movement, Track, untracked
from heterolora.saliency.score import score
from model.reallocation.callback import ScoreSource
from model.task.fine_tuning import FineTuning
from model.task.optimization import coming_rates
from model.task.scoring import batch_count, scoring_problem
from options.scoring import ScoringOptions


class DedicatedScores(ScoreSource):
    """Scores from separate batches, the first of the training set. They are read once and kept.

    Args:
        options: the heuristic and its tolerance.
        batches: (rank, number of processes) -> the scoring batches of that process.
    """

    def __init__(
        self, options: ScoringOptions, batches: Callable[[int, int], Iterable[Batch]], track: Track = untracked
    ) -> None:
        self.options, self.batches, self.track = options, batches, track
        self._on_device: list[Batch] | None = None

    def scores(self, trainer: pl.Trainer, task: FineTuning, until_due: int) -> Mapping[str, float]:
        if self._on_device is None:
            share = self.batches(trainer.global_rank, trainer.world_size)
            self._on_device = [trainer.strategy.batch_to_device(batch) for batch in share]
        tolerance, precision = self.options.metric_red_tolerance, trainer.precision_plugin.forward_context
        movement = _movement(trainer, task, until_due)
        problem = scoring_problem(task, self._on_device, tolerance, self.track, precision, movement)
        return score(present(self.options.importance_test_name), problem)


class TrainingScores(ScoreSource):
    """Scores from the training batches before a reallocation; see `TrainingGradients`.

    Args:
        limit: number of these batches, or their share of the training set.
        first: gives the scores before the first training batch.
    """

    def __init__(self, gradients: TrainingGradients, limit: int | float, first: DedicatedScores) -> None:
        self.gradients, self.limit, self.first = gradients, limit, first

    def scores(self, trainer: pl.Trainer, task: FineTuning, until_due: int) -> Mapping[str, float]:
        return self.gradients.scores() if self.gradients.windows else self.first.scores(trainer, task, until_due)

    def switched(self) -> None:
        self.gradients.stop()
        self.gradients.reset()

    def batch_starts(self, trainer: pl.Trainer, batch: int, until_due: int) -> None:
        limit, _ = batch_count(self.limit, int(trainer.num_training_batches))
        if recorded(batch, until_due, limit, trainer.accumulate_grad_batches):
            self.gradients.start()

    def window_ends(self, trainer: pl.Trainer, task: FineTuning) -> None:
        if not self.gradients.recording:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        scale = None if scaler is None else scaler.get_scale()
        every = (weight.grad for group in trainer.optimizers[0].param_groups for weight in group["params"])
        stepped = [] if scaler is None else [gradient for gradient in every if gradient is not None]
        self.gradients.collect(scale, task.window.share, stepped)

    def state_dict(self) -> dict[str, Any]:
        return self.gradients.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gradients.load_state_dict(state)


def _movement(trainer: pl.Trainer, task: FineTuning, batches: int) -> Movement:
    """Return what the optimizer does to every B in the next batches, at the learning rates of the schedule."""
    groups = [group["name"] for group in trainer.optimizers[0].param_groups]
    group = groups.index("B" if "B" in groups else "matrices")
    rates = coming_rates(trainer.lr_scheduler_configs[0].scheduler, group)
    steps = math.ceil(batches / trainer.accumulate_grad_batches)
    return Movement(sum(itertools.islice(rates, steps)), adaptive=task.optimization.optimizer != "sgd")
