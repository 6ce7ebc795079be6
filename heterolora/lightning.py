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
from heterolora.common.errors import UserError
from heterolora.elements.inside import compact, units_of
from heterolora.elements.rank_units import Units, forget_off
from heterolora.library import LossFunction, problem_of
from heterolora.pictures.of_run import draw_history
from heterolora.saliency.problem import Movement
from heterolora.saliency.score import score
from heterolora.search import Schedule, Search


class Reallocate(pl.Callback):
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
        self.budgeted = Budgeted(parameters, share, schedule, heuristic, start, end, every, smoothing, seed, units)
        self.batches, self.loss, self.adapter, self.compact = batches, loss, adapter, compact
        self.search: Search | None = None
        self._resumed: Mapping[str, Any] | None = None
        self._scoring: list[Any] = []
        self._folder = Path()
        self._last = 0  # optimizer steps at the end of the batch before

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        return {} if self.search is None else self.search.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resumed = state_dict or None

    # ---- the run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check(trainer)
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast: every process asks
        steps = int(trainer.estimated_stepping_batches)
        space = units_of(pl_module, self.adapter, self.budgeted.units)
        plan = self.budgeted.plan(space, steps)
        self.search, self._last = Search(space, plan, steps), trainer.global_step
        if self._resumed is not None:
            self.search.load_state_dict(self._resumed)
        if plan.schedule == "fixed":
            found = self.batches
            if isinstance(found, int):
                found = itertools.islice(trainer.train_dataloader or (), found)
            self._scoring = [trainer.strategy.batch_to_device(batch) for batch in found]
        if trainer.is_global_zero:
            print(self.search.at_the_start())
        if trainer.global_step == 0:
            self._decide(trainer, pl_module)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._running().observe(trainer.global_step, loss_is_scaled=scaler is not None)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        search = self._running()
        if trainer.global_step == self._last:  # inside an accumulation window
            return
        self._last = trainer.global_step
        if search.due(trainer.global_step):
            self._decide(trainer, pl_module)
            pl_module.log_dict(search.figures())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        search = self._running()
        if trainer.is_global_zero:
            search.history.write(self._folder)
            draw_history(search.history, self._folder)
            print(search.at_the_end())
        if self.compact:
            compact(pl_module, self.adapter)

    # ---- parts

    def _running(self) -> Search:
        if self.search is None:
            raise UserError("the search has not started", "pass the callback to the Trainer before training")
        return self.search

    def _decide(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        search = self._running()
        search.decide(trainer.global_step, lambda: self._scores(search, trainer, module))
        if search.plan.units == "rank":
            forget_off(search.space, trainer.optimizers)
        if trainer.is_global_zero:
            search.history.write(self._folder)

    def _scores(self, search: Search, trainer: pl.Trainer, module: pl.LightningModule) -> Mapping[str, float]:
        optimizer = trainer.optimizers[0]
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
