"""The Lightning callback that scores the search space during training, and switches its elements."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from heterolora.choosing import allocation
from heterolora.choosing.allocation import Scored
from heterolora.choosing.history import Decision, History
from heterolora.choosing.ranks import choose
from heterolora.choosing.step_time import StepTime
from heterolora.common.distributed import gather_lists
from heterolora.common.errors import DivergenceError, NotFiniteError, UserError
from heterolora.elements.element import Place
from heterolora.elements.search_space import SearchSpace
from model.reallocation.schedule import Schedule, realloc_interval
from model.task.fine_tuning import FineTuning
from model.task.optimization import steps_of_run
from options.scoring import ReallocationOptions


class ScoreSource:
    """Computes the scores. Only `scores` must be overridden."""

    def scores(self, trainer: pl.Trainer, task: FineTuning, until_due: int) -> Mapping[str, float]:
        """Returns key -> score of every element, the same on every process.

        The elements that are chosen will be trained on `until_due` batches before the next reallocation.
        """
        raise NotImplementedError

    def switched(self) -> None:
        """Runs after elements were switched. Forgets the batches before."""

    def batch_starts(self, trainer: pl.Trainer, batch: int, until_due: int) -> None:
        """Runs before batch `batch` of the epoch. The next reallocation is `until_due` batches later."""

    def window_ends(self, trainer: pl.Trainer, task: FineTuning) -> None:
        """Runs when the gradients of an accumulation window are complete: of the global batch, before clipping."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Reallocate(pl.Callback):
    """Scores the elements and turns the best ones on, at the start of each epoch and in between.

    A reallocation happens before the first batch of an accumulation window, and after the checkpoint of the batch
    before, so that a resumed run repeats it. An element that is off keeps its weights and its optimizer state.

    Args:
        options: the interval and the budget. `dyrealloc_ags_mode` and `realloc_warmup_epochs` must not be None.
        seed: of the draws between equal scores.
        source: computes the scores.
        folder: the run folder, for the history files.
        note: prints a line for the user.
        step_time: measures a training step, for a budget of time. It is called once in a run.
    """

    def __init__(
        self,
        options: ReallocationOptions,
        seed: int,
        source: ScoreSource,
        folder: Path,
        note: Callable[[str], None],
        step_time: Callable[[pl.Trainer, FineTuning], StepTime] | None = None,
    ) -> None:
        self.options, self.seed, self.source, self.folder, self.note = options, seed, source, folder, note
        self.step_time, self.limit = step_time, options.budget
        self.schedule, self.history = Schedule(1), History(())  # of the run, once it has started
        self.seconds = 0.0  # spent on scoring since this process started
        self._started = self._ended = 0.0

    @property
    def share_of_time(self) -> float:
        """The share of scoring in the training time of this process."""
        return self.seconds / max((self._ended or time.perf_counter()) - self._started, 1e-9)

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        step_time = None if self.limit.step_time is None else asdict(self.limit.step_time)
        return {"history": self.history.state_dict(), "source": self.source.state_dict(), "step_time": step_time}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.history.load_state_dict(state["history"])
        self.source.load_state_dict(state["source"])
        if (step_time := state.get("step_time")) is not None:
            self.limit = replace(self.limit, step_time=StepTime(**step_time))

    # ---- when

    def setup(self, trainer: pl.Trainer, pl_module: FineTuning, stage: str) -> None:
        if stage == "fit":
            self.history = History(pl_module.space.elements)  # before a checkpoint's state is loaded into it

    def on_train_start(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        self._started = time.perf_counter()
        per_epoch, every = trainer.num_training_batches, self.options.realloc_N
        batches = realloc_interval(every, per_epoch, trainer.accumulate_grad_batches)
        if batches > per_epoch and every != 1.0:  # a whole epoch may be rounded up to whole windows
            found = f"--realloc-N {every} is {batches} batches in whole optimizer steps, and an epoch has {per_epoch}"
            self.note(f"{found}: reallocating once an epoch")
        self.schedule = Schedule(batches, self.options.realloc_warmup_epochs)
        warm_up = steps_of_run(per_epoch, trainer.accumulate_grad_batches, self.schedule.warmup_epochs, max_steps=-1)
        if 0 < (steps := pl_module.total_steps()) <= warm_up:
            found = f"the warm-up takes the whole run ({steps} steps), and no score decides in it"
            self.note(f"{found}: raise --max-epochs or --max-steps, or lower --realloc-warmup-epochs")
        if trainer.is_global_zero:
            self.history.write(self.folder)  # a resumed run removes the decisions after its checkpoint

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: FineTuning, batch: Any, batch_idx: int) -> None:
        if self.schedule.due(batch_idx):
            self._reallocate(trainer, pl_module, batch_idx)
        until_due = self.schedule.batches_until_due(batch_idx, trainer.num_training_batches)
        self.source.batch_starts(trainer, batch_idx, until_due)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: FineTuning, optimizer: Any) -> None:
        self.source.window_ends(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: FineTuning) -> None:
        self._ended = time.perf_counter()

    # ---- what

    def _reallocate(self, trainer: pl.Trainer, task: FineTuning, step: int) -> None:
        space, epoch, index = task.space, trainer.current_epoch, len(self.history.decisions)
        ties, options = allocation.tie_generator(self.seed, index), self.options
        try:
            if self.limit.unit == "time" and self.limit.step_time is None:
                self.limit = replace(self.limit, step_time=trainer.strategy.broadcast(self.step_time(trainer, task)))
            scored = self._scored(trainer, task, step)
            chosen = choose(scored, self.limit, options.dyrealloc_ags_mode, ties)
        except UserError as reason:
            found = f"at step {trainer.global_step} (epoch {epoch}), {reason.found}"
            diverged = isinstance(reason, NotFiniteError) and trainer.global_step > 0
            raise (DivergenceError if diverged else UserError)(found, reason.expected) from None
        on = tuple(element.key in chosen for element in space.elements)
        _check_agreement(space.elements, on, index)
        space.switch(chosen)
        self.source.switched()
        self.history.decisions.append(Decision(epoch, step, tuple(item.score for item in scored), on))
        if trainer.is_global_zero:
            self.history.append(self.folder)
        self._log(trainer, space)

    def _scored(self, trainer: pl.Trainer, task: FineTuning, step: int) -> Sequence[Scored]:
        start, elements = time.perf_counter(), task.space.elements
        if self.schedule.warming_up(trainer.current_epoch):
            scored = allocation.by_least_often_on(elements, self.history.times_on())
        else:
            before = self.history.decisions[-1:]
            if before and self.schedule.warming_up(before[0].epoch):
                self._check_warm_up()
            until_due = self.schedule.batches_until_due(step, trainer.num_training_batches)
            scores = self.source.scores(trainer, task, until_due)
            scored = [Scored(element, scores[element.key]) for element in elements]
        self.seconds += time.perf_counter() - start
        return scored

    def _check_warm_up(self) -> None:
        """At the end of the warm-up: an element that was never on still has B = 0, which some heuristics score 0."""
        never = sum(times == 0 for times in self.history.times_on().values())
        if never:
            found = f"{never} elements were never on in the warm-up, so that their scores may be 0"
            self.note(f"{found}: lower --realloc-N, raise --realloc-warmup-epochs, or raise the budget")

    def _log(self, trainer: pl.Trainer, space: SearchSpace) -> None:
        figures = {
            "realloc/churn": self.history.churn()[-1],
            "realloc/scoring_seconds": self.seconds,
            "realloc/scoring_share": self.share_of_time,
        }
        for kind in ("lora", "shortcut"):
            if space.of_kind(kind):
                figures[f"realloc/{kind}_on"] = float(len(space.on(kind)))
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)


def _check_agreement(places: Sequence[Place], on: tuple[bool, ...], index: int) -> None:
    """Raises UserError on every process unless all of them decided the same.

    Different decisions would average the gradients of different elements without an error.
    """
    everywhere = gather_lists([on])
    if len(set(everywhere)) == 1:
        return
    columns = zip(places, zip(*everywhere, strict=True), strict=True)
    apart = next((element.key for element, states in columns if len(set(states)) > 1), "their number")
    raise UserError(
        f"the processes disagree about {apart} at reallocation {index}",
        "run all of them on machines of one kind, with the same versions",
    )
