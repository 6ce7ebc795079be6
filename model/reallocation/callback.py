"""The Lightning callback that scores the search space during training, and switches its elements."""

# mypy: disable-error-code="override"
# Lightning gives its callbacks the task.

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from heterolora.choosing import allocation
from heterolora.choosing.ranks import Budget
from heterolora.choosing.step_time import StepTime
from heterolora.common.checks import present
from heterolora.common.distributed import gather_lists
from heterolora.elements.element import Element
from heterolora.elements.rank_units import rank_units
from heterolora.lightning import Searching
from heterolora.search import Plan, Search
from model.reallocation.schedule import Schedule, realloc_interval
from model.reallocation.tolerance import RowLosses, Tolerance
from model.task.fine_tuning import FineTuning
from model.task.optimization import steps_of_run

_FEW_SIZES = 4  # fewer validations than this while elements are turned off are worth a note


class ScoreSource:
    """Computes the scores of a fixed budget. Only `scores` must be overridden."""

    def scores(self, trainer: pl.Trainer, task: FineTuning, until_due: int) -> Mapping[str, float]:
        """Return key -> score of every element, the same on every process.

        The elements that are chosen will be trained on `until_due` batches before the next reallocation.
        """
        raise NotImplementedError

    def switched(self) -> None:
        """Run after elements were switched. Forgets the batches before."""

    def batch_starts(self, trainer: pl.Trainer, batch: int, until_due: int) -> None:
        """Run before batch `batch` of the epoch. The next reallocation is `until_due` batches later."""

    def window_ends(self, trainer: pl.Trainer, task: FineTuning) -> None:
        """Run when the gradients of an accumulation window are complete: of the global batch, before clipping."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Reallocate(Searching):
    """Scores the elements and turns the best ones on: the search of `heterolora.search` in the program's own trainer.

    With a fixed budget it reallocates at the start of each epoch and in between, and with one that shrinks after
    optimizer steps. An element that is off keeps its weights and its optimizer state.

    Args:
        plan: what the search does.
        every: batches, or share of an epoch, between two reallocations of a fixed budget.
        warmup_epochs: of a fixed budget, see `Schedule`.
        source: computes the scores of a fixed budget.
        tolerance: judges the validations, and stops a budget that shrinks.
        folder: the run folder, for the history files.
        note: prints a line for the user.
        step_time: measures a training step, for a budget of time. It is called once in a run.
    """

    def __init__(
        self,
        plan: Plan,
        every: int | float,
        warmup_epochs: int,
        source: ScoreSource,
        folder: Path,
        note: Callable[[str], None],
        step_time: Callable[[pl.Trainer, FineTuning], StepTime] | None = None,
        tolerance: Tolerance | None = None,
    ) -> None:
        super().__init__()
        self.plan, self.every, self.warmup_epochs = plan, every, warmup_epochs
        self.source, self.folder, self.note, self.step_time = source, folder, note, step_time
        self.tolerance = tolerance
        self.schedule = Schedule(1)  # of the run, once it has started
        self.elements: tuple[Element, ...] = ()  # of the run, with all their ranks
        self.seconds = 0.0  # spent on scoring since this process started
        self._started = self._ended = 0.0
        self._step = 0  # the number of the optimizer step that is computed, from 1

    @property
    def budget(self) -> Budget:
        """With the time of a step, once it is measured."""
        return self.running.plan.budget

    @property
    def share_of_time(self) -> float:
        """The share of scoring in the training time of this process."""
        return self.seconds / max((self._ended or time.perf_counter()) - self._started, 1e-9)

    def settled(self) -> bool:
        """Whether what is on is within the budget, so that the weights may be the best ones of the run."""
        return self.running.settled(self._step)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        step_time = None if self.budget.step_time is None else asdict(self.budget.step_time)
        state = {"history": self.history.state_dict(), "source": self.source.state_dict(), "step_time": step_time}
        search = self.running
        if search.plan.shrinks:
            state["smoothed"] = dict(search.scores)
        if self.tolerance is not None:
            state["tolerance"] = self.tolerance.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        self.source.load_state_dict(state["source"])
        search = self.running
        search.scores = dict(state.get("smoothed", {}))
        if self.tolerance is not None:
            self.tolerance.load_state_dict(state["tolerance"])
        if (step_time := state.get("step_time")) is not None:
            self._measured(StepTime(**step_time))

    # ---- when

    def setup(self, trainer: pl.Trainer, pl_module: FineTuning, stage: str) -> None:
        if stage == "fit":  # before a checkpoint's state is loaded into it
            space = present(pl_module.space)
            self.elements = space.elements
            units = rank_units(space) if self.plan.units == "rank" else space
            self.search = Search(units, self.plan, int(pl_module.total_steps()), self.tolerance)

    def on_train_start(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        self._started = time.perf_counter()
        if not self.plan.shrinks:
            self._start_schedule(trainer, pl_module)
        elif self.tolerance is not None:
            self._check_validations(trainer)
        super().on_train_start(trainer, pl_module)

    def _start_schedule(self, trainer: pl.Trainer, task: FineTuning) -> None:
        per_epoch = int(trainer.num_training_batches)
        batches = realloc_interval(self.every, per_epoch, trainer.accumulate_grad_batches)
        if batches > per_epoch and self.every != 1.0:  # a whole epoch may be rounded up to whole windows
            found = (
                f"--realloc-N {self.every} is {batches} batches in whole optimizer steps, and an epoch has {per_epoch}"
            )
            self.note(f"{found}: reallocating once an epoch")
        self.schedule = Schedule(batches, self.warmup_epochs)
        warm_up = steps_of_run(per_epoch, trainer.accumulate_grad_batches, self.warmup_epochs, max_steps=-1)
        if 0 < (steps := task.total_steps()) <= warm_up:
            found = f"the warm-up takes the whole run ({steps} steps), and no score decides in it"
            self.note(f"{found}: raise --max-epochs or --max-steps, or lower --realloc-warmup-epochs")

    def _check_validations(self, trainer: pl.Trainer) -> None:
        per_epoch, interval = int(trainer.num_training_batches), trainer.val_check_interval
        every = (per_epoch if isinstance(interval, float) else interval) / trainer.accumulate_grad_batches
        first, last = self.plan.span(self.running.steps)
        if (count := int(last / every) - int(first / every)) < _FEW_SIZES:
            found = f"{count} validation{'' if count == 1 else 's'} while elements are turned off"
            self.note(f"{found}: lower --val-check-interval, so that there are more sizes to choose from")

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: FineTuning, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._step = trainer.global_step + 1
        if not self.plan.shrinks:
            self.source.batch_starts(trainer, batch_idx, self._until_due(trainer, batch_idx))

    def due(self, trainer: pl.Trainer, batch: int) -> bool:
        return super().due(trainer, batch) if self.plan.shrinks else self.schedule.due(batch)

    def _until_due(self, trainer: pl.Trainer, batch: int) -> int:
        return self.schedule.batches_until_due(batch, int(trainer.num_training_batches))

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: FineTuning, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.source.window_ends(trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        if self._judges(trainer):
            pl_module.keeps_rows = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        if not self._judges(trainer):
            return
        search, split = self.running, pl_module.validation_names[0]
        rows = sorted((row.index, row.loss, row.count) for row in gather_lists(pl_module.rows) if row.split == split)
        on = len(search.space.on())
        losses, tolerance = RowLosses.of([row[1:] for row in rows]), present(self.tolerance)
        verdict = tolerance.judge(losses, search.on, search.ends(trainer.global_step))
        if verdict is not None:
            found = (
                f"step {trainer.global_step}: {on} of {len(search.space)} elements, validation loss against the lowest"
            )
            self.note(f"{found} before {present(tolerance.last).text(signed=True)}: {verdict}")

    def _judges(self, trainer: pl.Trainer) -> bool:
        """Whether the validation may stop the search."""
        return trainer.state.fn == "fit" and self.tolerance is not None and not self.tolerance.stopped

    def on_train_end(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        self._ended = time.perf_counter()
        search = self.running
        if self.tolerance is not None and not search.settled(trainer.global_step):
            return  # the report says it
        if not search.settled(trainer.global_step):
            found = f"training ended after step {trainer.global_step}, before the budget was reached"
            self.note(f"{found}: {search.parameters_on:,} parameters are on")

    # ---- what

    def when(self, trainer: pl.Trainer, batch: int) -> tuple[int, int]:
        return trainer.current_epoch, batch

    def decide(self, trainer: pl.Trainer, module: FineTuning, batch: int) -> bool:
        if self.budget.unit == "time" and self.budget.step_time is None:
            self._measured(trainer.strategy.broadcast(present(self.step_time)(trainer, module)))
        decided = super().decide(trainer, module, batch)
        if decided:
            self.source.switched()
        return decided

    def _measured(self, step_time: StepTime) -> None:
        search = self.running
        search.plan = replace(search.plan, budget=replace(search.plan.budget, step_time=step_time))

    def scores(self, trainer: pl.Trainer, module: FineTuning, batch: int) -> Mapping[str, float]:
        start, elements = time.perf_counter(), present(module.space).elements
        if self.schedule.warming_up(trainer.current_epoch):
            least = allocation.by_least_often_on(elements, self.history.times_on())
            scores: Mapping[str, float] = {item.element.key: item.score for item in least}
        else:
            before = self.history.decisions[-1:]
            if before and self.schedule.warming_up(before[0].epoch):
                self._check_warm_up()
            scores = self.source.scores(trainer, module, self._until_due(trainer, batch))
        self.seconds += time.perf_counter() - start
        return scores

    def _check_warm_up(self) -> None:
        """At the end of the warm-up: an element that was never on still has B = 0, which some heuristics score 0."""
        never = sum(times == 0 for times in self.history.times_on().values())
        if never:
            found = f"{never} elements were never on in the warm-up, so that their scores may be 0"
            self.note(f"{found}: lower --realloc-N, raise --realloc-warmup-epochs, or raise the budget")

    def figures(self) -> dict[str, float]:
        own = {"realloc/scoring_seconds": self.seconds, "realloc/scoring_share": self.share_of_time}
        return {**super().figures(), **own}
