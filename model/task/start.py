"""The Lightning callback that sets where A starts, see `heterolora.saliency.start`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytorch_lightning as pl

from heterolora.saliency.problem import Batch
from heterolora.saliency.start import Start, start
from heterolora.saliency.warm_up import is_fresh
from model.task.fine_tuning import FineTuning
from model.task.scoring import scoring_problem


class StartElements(pl.Callback):
    """Sets A of every element when training starts, unless the elements are trained already.

    Args:
        kind: `--lora-init`.
        seed: of random directions.
        batches: (rank, number of processes) -> the scoring batches of that process.
        note: prints a line for the user.
    """

    def __init__(
        self, kind: Start, seed: int, batches: Callable[[int, int], Iterable[Batch]], note: Callable[[str], None]
    ) -> None:
        self.kind, self.seed, self.batches, self.note = kind, seed, batches, note

    def on_fit_start(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        share = [] if self.kind == "orthogonal" else self.batches(trainer.global_rank, trainer.world_size)
        on_device = [trainer.strategy.batch_to_device(batch) for batch in share]
        precision = trainer.precision_plugin.forward_context
        problem = scoring_problem(pl_module, on_device, tolerance=0.0, precision=precision)
        if is_fresh(problem):
            start(problem, self.kind, self.seed)
        else:
            self.note(f"--lora-init {self.kind} has no effect: the elements are trained already (B is not 0)")
