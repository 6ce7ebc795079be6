"""The search during training as a Lightning callback, for any LightningModule that holds LoRA layers: those of PEFT, or
of `heterolora.adapt`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from heterolora.budgeted import Budgeted
from heterolora.choosing.history import History
from heterolora.common.errors import UserError
from heterolora.elements.inside import check_compact, compact, units_of
from heterolora.elements.rank_units import Units, forget_off
from heterolora.library import LossFunction, problem_of
from heterolora.pictures.of_run import draw_history
from heterolora.saliency.own_forward import networks_with_kernels, train_with_kernels_of_training
from heterolora.saliency.problem import Movement
from heterolora.saliency.score import score
from heterolora.search import Schedule, Search


class Searching(pl.Callback):
    """A search inside a Lightning trainer. A subclass makes `search`, and computes the scores of a fixed budget.

    A decision comes before the first batch of an accumulation window, and after the checkpoint of the batch before, so
    that a resumed run repeats it.

    Attributes:
        folder: of the history files.
    """

    def __init__(self) -> None:
        self.search: Search | None = None
        self.folder = Path()

    @property
    def running(self) -> Search:
        if self.search is None:
            raise UserError("the search has not started", "pass the callback to the Trainer before training")
        return self.search

    @property
    def history(self) -> History:
        return self.running.history

    def scores(self, trainer: pl.Trainer, module: pl.LightningModule, batch: int) -> Mapping[str, float]:
        """Return key -> score of every element, for a decision of a fixed budget before batch `batch` of the epoch."""
        raise NotImplementedError

    def figures(self) -> dict[str, float]:
        """Return name -> value for the trainer's loggers."""
        return self.running.figures()

    def due(self, trainer: pl.Trainer, batch: int) -> bool:
        """Whether there is a decision before batch `batch` of the epoch."""
        return batch % trainer.accumulate_grad_batches == 0 and self.running.due(trainer.global_step)

    def when(self, trainer: pl.Trainer, batch: int) -> tuple[int, int]:
        """(epoch, step) of a decision before batch `batch` of the epoch, for the history: steps of the whole run."""
        return 0, trainer.global_step

    def decide(self, trainer: pl.Trainer, module: pl.LightningModule, batch: int) -> bool:
        """Switch elements, and write and log what was decided. Return whether there is a new decision."""
        search, before = self.running, len(self.history.decisions)
        search.decide(trainer.global_step, lambda: self.scores(trainer, module, batch), self.when(trainer, batch))
        if len(self.history.decisions) == before:
            return False
        if search.plan.units == "rank":
            forget_off(search.space, trainer.optimizers)
        if trainer.is_global_zero:
            self.history.append(self.folder)
        for logger in trainer.loggers:
            logger.log_metrics(self.figures(), step=trainer.global_step)
        return True

    # ---- the run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.history.write(self.folder)  # a resumed run removes the decisions after its checkpoint

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.due(trainer, batch_idx):
            self.decide(trainer, pl_module, batch_idx)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.running.observe(trainer.global_step, loss_is_scaled=scaler is not None)


class Reallocate(Searching):
    """Turns LoRA layers inside a LightningModule, of PEFT or of `heterolora.adapt`, on and off while it is trained.

    A layer that is off computes what the base computes. Its weights and its optimizer state do not change.

    Args:
        parameters, share, schedule, heuristic, start, end, every, smoothing, units, adapter, compact, seed: as for
            `heterolora.transformers.Reallocate`; the seed is 0 by default.
        batches: for `fixed`: the scoring batches of this process, or the number of batches of the training data.
        loss: for `fixed`: (module, batch) -> scalar loss; by default `module(**batch).loss`.

    The history of the decisions is written to `reallocation_history.toml` in the trainer's log folder, with pictures if
    matplotlib is installed. The state of the search is part of each checkpoint.

    Raises:
        UserError: at the start of training, if the budget or the way of training cannot work.
    """

    def __init__(
        self,
        parameters: int | None = None,
        *,
        share: float | None = None,
        schedule: Schedule = "shrink",
        heuristic: str | None = None,
        start: float = 0.1,
        end: float = 0.5,
        every: int | None = None,
        smoothing: float = 0.85,
        batches: int | Iterable[Any] = 8,
        loss: LossFunction | None = None,
        units: Units = "element",
        adapter: str | None = None,
        compact: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.budgeted = Budgeted(parameters, share, schedule, heuristic, start, end, every, smoothing, seed, units)
        self.batches, self.loss, self.adapter, self.compact = batches, loss, adapter, compact
        self._resumed: Mapping[str, Any] | None = None
        self._scoring: list[Any] = []
        self._with_kernels: list[Any] = []

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {} if self.search is None else self.search.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict or None

    # ---- the run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check(trainer)
        self.folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast: every process asks
        self._with_kernels = networks_with_kernels(pl_module)
        train_with_kernels_of_training(self._with_kernels)
        if self.compact:
            check_compact(pl_module, self.adapter)
        steps = int(trainer.estimated_stepping_batches)
        space = units_of(pl_module, self.adapter, self.budgeted.units)
        plan = self.budgeted.plan(space, steps)
        self.search = Search(space, plan, steps)
        if self._resumed is not None:
            self.search.load_state_dict(self._resumed)
        if plan.schedule == "fixed":
            found = self.batches
            if isinstance(found, int):
                found = itertools.islice(trainer.train_dataloader or (), found)
            self._scoring = [trainer.strategy.batch_to_device(batch) for batch in found]
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero:
            print(self.search.at_the_start())

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        train_with_kernels_of_training(self._with_kernels)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            draw_history(self.history, self.folder)
            print(self.running.at_the_end())
        if self.compact:
            compact(pl_module, self.adapter)

    def scores(self, trainer: pl.Trainer, module: pl.LightningModule, batch: int) -> Mapping[str, float]:
        search, optimizer = self.running, trainer.optimizers[0]
        length = search.plan.every * float(optimizer.param_groups[0]["lr"])
        movement = Movement(length, adaptive=not isinstance(optimizer, torch.optim.SGD))
        with trainer.precision_plugin.forward_context():
            problem = problem_of(module, search.space, self._scoring, self.loss)
        return score(search.plan.heuristic, replace(problem, movement=movement))


def _check(trainer: pl.Trainer) -> None:
    """Raise UserError for ways of training in which switched layers would not be right."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
        raise UserError(f"Reallocate was not tested with {type(strategy).__name__}", "use DDP or one device")
    finds = getattr(strategy.model, "find_unused_parameters", True)  # of DistributedDataParallel
    if isinstance(strategy, DDPStrategy) and not finds:
        found = "the strategy is ddp, in which every trained parameter must have a gradient in every step"
        raise UserError(found, "give Trainer(strategy='ddp_find_unused_parameters_true')")
