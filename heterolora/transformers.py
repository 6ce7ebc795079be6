"""The search during training as a callback of Transformers' `Trainer`, and of trainers that build on it, such as TRL's.

trainer = SFTTrainer(model, args, train_dataset=data, peft_config=LoraConfig(r=1, target_modules="all-linear"),
                     callbacks=[heterolora.transformers.Reallocate(parameters=75_000)])
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from heterolora.budgeted import Budgeted
from heterolora.common.distributed import world_size
from heterolora.common.errors import UserError
from heterolora.common.files import write_text
from heterolora.common.outside import read_json
from heterolora.elements.inside import check_compact, compact, units_of
from heterolora.elements.rank_units import Units, forget_off
from heterolora.library import problem_of
from heterolora.pictures.of_run import draw_history
from heterolora.saliency.problem import Movement
from heterolora.saliency.score import score
from heterolora.search import Schedule, Search

STATE = "heterolora_search.json"  # in each checkpoint folder
_REFERENCE = "ref"  # TRL's name for the copy of an adapter that it trains further, in DPO and other methods

logger = logging.get_logger(__name__)


class Reallocate(TrainerCallback):
    """Turns LoRA layers of a PEFT model, or of a model of `heterolora.adapt`, on and off while a `Trainer` trains it.

    A layer that is off computes what the base computes. Its weights and its optimizer state do not change.

    Args:
        parameters: the budget: trainable parameters of the layers that are on.
        share: the budget as a share in (0, 1] of the parameters of all layers, instead of `parameters`.
        schedule: `shrink` begins with all layers on and turns the weakest off along a cubic curve until the budget is
            reached. `fixed` has the budget from the first step and chooses anew every `every` steps.
        heuristic: by default `snip` for `shrink`, from the gradients of training, which need no further passes, and
            `gain` for `fixed`, from `batches`.
        start: for `shrink`: the share of the run after which the first layers are turned off.
        end: for `shrink`: the share of the run after which the budget is reached.
        every: optimizer steps between two decisions; by default 1 for `shrink`, and a twentieth of the run for `fixed`.
        smoothing: for `shrink`: the weight of earlier steps in the exponential mean of the scores.
        batches: for `fixed`: the scoring batches of this process, or the number of batches of the training data.
        units: for `shrink`: what is turned off at a time. `element`: the LoRA of a layer. `rank`: a single rank of one,
            so that layers end with different ranks.
        adapter: the name of the adapter; by default the only one.
        compact: whether to remove the layers and the ranks that are off when training ends, so that the saved adapter
            holds what is on only. Without it, PEFT would load the layers that were off as layers that are on.
        seed: of the draws between equal scores; by default the seed of the training arguments.

    The history of the decisions is written to `reallocation_history.toml` in `args.output_dir`, with pictures if
    matplotlib is installed. The state of the search is in each checkpoint folder, from which `resume_from_checkpoint`
    continues.

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
        batches: int | Iterable[Mapping[str, Any]] = 8,
        units: Units = "element",
        adapter: str | None = None,
        compact: bool = True,
        seed: int | None = None,
    ) -> None:
        self.budgeted = Budgeted(parameters, share, schedule, heuristic, start, end, every, smoothing, seed or 0, units)
        self.seed, self.batches, self.adapter, self.compact = seed, batches, adapter, compact
        self.search: Search | None = None
        self._scoring: list[Mapping[str, Any]] = []

    # ---- the run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        _check(args, others["model"])
        if self.compact:
            check_compact(others["model"], self.adapter)
        space = units_of(others["model"], self.adapter, self.budgeted.units)
        seed = args.seed if self.seed is None else self.seed
        plan = replace(self.budgeted, seed=seed).plan(space, state.max_steps)
        self.search = Search(space, plan, state.max_steps)
        if state.global_step > 0:
            self._restore(args, _folder(args) / f"checkpoint-{state.global_step}")  # its weights are loaded already
        if plan.schedule == "fixed":
            self._scoring = self._scoring_batches(args, others["train_dataloader"])
        if state.is_world_process_zero:
            logger.warning(self.search.at_the_start())
        if state.global_step == 0:
            self._decide(args, state, others)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        self._running().observe(state.global_step, loss_is_scaled=args.fp16)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if self._running().due(state.global_step):
            self._decide(args, state, others)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Add the figures of the search to those that the trainer logs."""
        if self.search is None or logs is None or "loss" not in logs:
            return
        figures = self.search.figures()
        logs.update(figures)
        if state.log_history:
            state.log_history[-1].update(figures)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        if state.is_world_process_zero:
            path = _folder(args) / f"checkpoint-{state.global_step}" / STATE
            write_text(path, json.dumps(self._running().state_dict()))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        search = self._running()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:  # its weights are loaded already
            search.space = units_of(others["model"], self.adapter, search.plan.units)
            self._restore(args, Path(state.best_model_checkpoint))
        if state.is_world_process_zero:
            search.history.write(_folder(args))
            draw_history(search.history, _folder(args))
            logger.warning(search.at_the_end())
        if self.compact:
            compact(others["model"], self.adapter)

    # ---- parts

    def _running(self) -> Search:
        if self.search is None:
            raise UserError("the search has not started", "pass the callback to the Trainer before training")
        return self.search

    def _decide(self, args: TrainingArguments, state: TrainerState, others: Mapping[str, Any]) -> None:
        search = self._running()
        before = len(search.history.decisions)
        search.decide(state.global_step, lambda: self._scores(search, others))
        if search.plan.units == "rank":
            forget_off(search.space, [_inner(others["optimizer"])])
        if state.is_world_process_zero and len(search.history.decisions) > before:
            search.history.write(_folder(args))

    def _scores(self, search: Search, others: Mapping[str, Any]) -> Mapping[str, float]:
        inner = _inner(others["optimizer"])
        length = search.plan.every * float(inner.param_groups[0]["lr"])
        movement = Movement(length, adaptive=not isinstance(inner, torch.optim.SGD))
        problem = replace(problem_of(others["model"], search.space, self._scoring), movement=movement)
        return score(search.plan.heuristic, problem)

    def _scoring_batches(self, args: TrainingArguments, loader: Iterable[Any]) -> list[Mapping[str, Any]]:
        found = itertools.islice(loader, self.batches) if isinstance(self.batches, int) else self.batches
        return [
            {name: value.to(args.device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
            for batch in found
        ]

    def _restore(self, args: TrainingArguments, checkpoint: Path) -> None:
        resumed = args.resume_from_checkpoint
        given = Path(resumed) if isinstance(resumed, str) else checkpoint
        path = next((folder / STATE for folder in (checkpoint, given) if (folder / STATE).is_file()), None)
        if path is None:
            expected = "resume from a checkpoint that was saved with this callback; if it is in another output_dir, "
            expected += "also give TrainingArguments(resume_from_checkpoint=…)"
            raise UserError(f"{checkpoint} has no {STATE}", expected)
        state = read_json(path, "the state of the search", "expected the file that the callback wrote")
        self._running().load_state_dict(state)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer in the wrapper of Accelerate."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


def _folder(args: TrainingArguments) -> Path:
    return Path(args.output_dir or ".")


def _launched_with(backend: str) -> bool:
    """Whether `accelerate launch` was told to use it. The training arguments do not say so."""
    return os.environ.get(f"ACCELERATE_USE_{backend}", "false").lower() in ("true", "1")


def _check(args: TrainingArguments, model: Any) -> None:
    """Raise UserError for ways of training in which switched layers would not be right."""
    if args.deepspeed is not None or _launched_with("DEEPSPEED"):
        found = "Reallocate does not work with DeepSpeed, which reduces and keeps gradients in a way of its own"
        raise UserError(found, "use DDP (torchrun) or one device")
    if args.fsdp or _launched_with("FSDP"):
        raise UserError("Reallocate was not tested with FSDP", "use DDP (torchrun) or one device")
    if args.world_size == 1 and (started := world_size()) > 1:
        found = f"{started} processes were started, and Trainer trains each of them alone: it finds no GPU"
        raise UserError(found, "set use_cpu=True, or start one process")
    if args.world_size > 1 and args.ddp_find_unused_parameters is False:
        found = "ddp_find_unused_parameters is False, and layers that are off have no gradients"
        raise UserError(found, "set ddp_find_unused_parameters=True")
    # Trainer's own choice for a model of Transformers that recomputes activations; a PeftModel is none.
    recomputes = isinstance(model, PreTrainedModel) and args.gradient_checkpointing
    if args.world_size > 1 and args.ddp_find_unused_parameters is None and recomputes:
        found = (
            "Trainer does not look for unused parameters with gradient_checkpointing, and layers that are off have none"
        )
        raise UserError(found, "set ddp_find_unused_parameters=True")
    if _REFERENCE in getattr(model, "peft_config", ()):
        found = f"TRL compares with the adapter '{_REFERENCE}', and turns all layers on with each change of adapter"
        raise UserError(found, "give the trainer the base and peft_config, so that it compares with the base")
    if args.fp16 and args.max_grad_norm <= 0:
        found = "fp16 with max_grad_norm=0 leaves the gradients scaled, by a factor that changes"
        raise UserError(found, "set max_grad_norm above 0, or use bf16")
