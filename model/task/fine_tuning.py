"""The base class of the three tasks: the global loss, exact metrics, and checkpoints of the trained weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, Self, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from dataset.better import mode
from dataset.official import official_metric
from dataset.spec import DatasetSpec
from heterolora.common.checks import present
from heterolora.common.distributed import gather_lists
from heterolora.common.errors import DivergenceError
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch, Loss
from model import metrics
from model.checkpoint import Checkpoint, ModelRecord, checkpoint_of, keep_trained
from model.lightning import leave_out_of_broadcasts, window_ends
from model.sharding import Sharding, is_sharded, shard, sharded_names
from model.task.answers import Answer
from model.task.frozen_prefix import FrozenPrefix
from model.task.generation import Generation
from model.task.optimization import batches_within, build_optimizer, build_scheduler, coming_rates, steps_of_run
from model.task.rows import Answers, RowResult
from model.task.window import Window
from model.trained import take, trained_names
from options.optimization import Optimization

_NETWORK_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True)
class TaskParts:
    """What a task is made of.

    Attributes:
        network: the Hugging Face model, adapted or plain.
        space: its search space. None for a plain model, which is trained completely.
        validation_names: the split of each validation dataloader; `test_names`: of each test dataloader.
        record: the identity of the model, for checkpoints.
        batches_per_epoch: number of processes -> training batches of an epoch on each of them.
        class_weights: of --class-weights, what a row of each class counts in training; empty: all count 1.
        metric: the metric, or `loss`, that selects the best checkpoint. None: the data set's first metric.
        sharding: how the base, or a plain model, is divided over processes. None: every process holds all of it.
        generation: how text is generated, for predictions and for metrics that compare it.
        uncompiled: makes a context in which compiled blocks run uncompiled.
    """

    network: PreTrainedModel
    space: SearchSpace | None
    spec: DatasetSpec
    validation_names: Sequence[str]
    test_names: Sequence[str]
    optimization: Optimization
    record: ModelRecord
    batches_per_epoch: Callable[[int], int]
    sharding: Sharding | None = None
    class_weights: tuple[float, ...] = ()
    metric: str | None = None
    generation: Generation | None = None
    uncompiled: Callable[[], AbstractContextManager[None]] = nullcontext


class FineTuning(pl.LightningModule, ABC):
    """A network and its task."""

    def __init__(self, parts: TaskParts) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints lack the base; `take` checks them
        self.parts, self.network, self.space = parts, parts.network.train(), parts.space
        self.spec, self.optimization, self.record = parts.spec, parts.optimization, parts.record
        self.validation_names, self.test_names = tuple(parts.validation_names), tuple(parts.test_names)
        self.batches_per_epoch, self.sharding = parts.batches_per_epoch, parts.sharding
        self.uncompiled = parts.uncompiled
        splits = dict.fromkeys((*self.validation_names, *self.test_names))
        self.figures = nn.ModuleDict({split: metrics.Figures(parts.spec) for split in splits})
        self.confusion: dict[str, list[list[Any]]] = {}  # split -> how often each class was predicted for each
        self.one_class: dict[str, str] = {}  # split -> the class of all predictions of the last evaluation
        self.metric = parts.metric or parts.spec.metrics[0]
        self.trained = trained_names(self.network, self.space)
        self.window = Window()
        self.frozen_prefix: FrozenPrefix | None = None  # set for --cache-frozen-prefix
        self.global_loss = torch.zeros(())  # of the last optimizer step: the mean over its window on all processes
        self.keeps_rows = False  # whether evaluation fills `rows`
        self.rows: list[RowResult] = []  # of this process, since the last validation began
        # Of the last evaluation on this process, for the official metrics: split, row, prediction, reference.
        self.predicted: list[tuple[str, int, Any, Any]] = []

    def again(self, **changes: Any) -> Self:
        """Return a new task with the parts of this one, except for `changes`, and nothing of its training."""
        return type(self)(replace(self.parts, **changes))

    @property
    def monitor(self) -> str:
        """The logged value that selects the best checkpoint, of the first validation split."""
        return f"{self.validation_names[0]}/{self.metric}"

    @property
    def monitor_mode(self) -> Literal["max", "min"]:
        return mode(self.metric)

    # ---- what a task defines

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Return the loss of a batch, which is measured and scored."""

    def training_loss(self, batch: Batch) -> Loss:
        """Return the loss of a batch that is trained on."""
        return self.loss(batch)

    @abstractmethod
    def predictions(self, batch: Batch, loss: Loss) -> tuple[Any, Any]:
        """Return the two arguments of the running metrics' `update`, without filler rows."""

    @abstractmethod
    def row_counts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Answers | None]:
        """Return what each row (rows,) of an evaluated batch counts, 1 or its target tokens, and its label and
        prediction: None for a task without labels. Filler rows have values too.
        """

    @abstractmethod
    def answers(self, batch: Batch) -> list[Answer]:
        """Return what the model predicts for the rows of a batch, which need no labels, without filler rows."""

    def official_pairs(self, first: Any, second: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        """Convert the result of `predictions` to predictions and references for the benchmark's own metric."""
        return first, second

    # ---- several processes

    def configure_model(self) -> None:
        """Before Lightning moves the network to its device, at every `fit`, `validate` and `test`."""
        self.shard(self.trainer.strategy.root_device)

    def shard(self, device: torch.device) -> None:
        """Shard the base, or a plain model, if it is to be sharded. Needs the process group."""
        if self.sharding is not None:
            shard(self.network, self.space, self.sharding, device)
            leave_out_of_broadcasts(self, sharded_names(self))

    # ---- training

    def on_train_start(self) -> None:
        """Set the learning rates of the schedule. A checkpoint restores those of a run of another length."""
        for config in self.trainer.lr_scheduler_configs:
            for number, group in enumerate(config.scheduler.optimizer.param_groups):
                group["lr"] = next(coming_rates(config.scheduler, number))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # Lightning clears the gradients now
            self.window.start()
        prefix = self.frozen_prefix
        with nullcontext() if prefix is None else prefix.reused(batch, network_inputs(batch)):
            loss = self.training_loss(batch)
        return self.window.add(loss, averaged=self._averages_gradients())

    def on_after_backward(self) -> None:
        """At the end of an accumulation window, makes the gradients those of its mean loss on all processes."""
        if not window_ends(self.trainer):
            return
        # Lightning divides each loss by the number of batches of a full window.
        divided_by, averaged = self.trainer.accumulate_grad_batches, self._averages_gradients()
        self.global_loss = self.window.finish(self.trainer.optimizers[0], divided_by, averaged)

    def _averages_gradients(self) -> bool:
        """Return whether the backward pass averages gradients over processes."""
        sharded = self.space is None and is_sharded(self.network)
        return sharded or isinstance(self.trainer.strategy.model, DistributedDataParallel)

    def configure_optimizers(self) -> Any:
        by_name = dict(self.network.named_parameters(remove_duplicate=False))
        parameters = dict.fromkeys(by_name[name] for name in self.trained)  # tied weights once
        optimizer = build_optimizer(parameters, self.optimization, self.space)
        schedule = build_scheduler(optimizer, self.total_steps(), self.optimization)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def optimizer_step(self, *args: Any, **more: Any) -> None:
        try:
            super().optimizer_step(*args, **more)
        except RuntimeError as error:
            if "without overflow" not in str(error):  # torch has no class for it
                raise
            raise DivergenceError(
                f"the update at step {self.global_step} is larger than float32 can hold",
                "give a lower --learning-rate, --loraplus-ratio or --weight-decay",
            ) from error

    def train_batches(self) -> int:
        """Return the number of training batches of an epoch, of this process, within `--limit-train-batches`."""
        return batches_within(self.batches_per_epoch(self.trainer.world_size), self.trainer.limit_train_batches)

    def total_steps(self) -> float:
        """Return the number of optimizer steps of the whole run.

        Lightning's own estimate creates the training loader before a checkpoint restores its position.
        """
        windows, epochs = self.trainer.accumulate_grad_batches, self.trainer.max_epochs
        return steps_of_run(self.train_batches(), windows, epochs, self.optimization.max_steps)

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.uncompiled():
            self._evaluate(batch, self.validation_names[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.uncompiled():
            self._evaluate(batch, self.test_names[dataloader_idx])

    def on_validation_epoch_start(self) -> None:
        self.predicted, self.rows = [], []

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Answer]:
        return self.answers(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics(self.validation_names)

    def on_test_epoch_start(self) -> None:
        self.predicted = []

    def on_test_epoch_end(self) -> None:
        self._log_metrics(self.test_names)

    def _evaluate(self, batch: Batch, split: str) -> None:
        loss = self.loss(batch)
        pair = self.predictions(batch, loss)
        if self.keeps_rows:
            kept = batch["weight"] > 0
            counts, correct = self.row_counts(batch, loss)
            self.rows += RowResult.of_batch(split, batch["index"], kept, present(loss.each), counts, correct)
        if bool((batch["weight"] > 0).any()):  # a process without rows of the last batch gets a filler row
            self._figures(split).update(loss, *pair)
        if self.spec.official is not None:
            kept = batch["index"][batch["weight"] > 0].tolist()
            pairs = zip(kept, *self.official_pairs(*pair), strict=True)
            self.predicted += [(split, *each) for each in pairs]

    def _figures(self, split: str) -> metrics.Figures:
        return cast(metrics.Figures, self.figures[split])

    def _log_metrics(self, splits: Sequence[str]) -> None:
        for split in dict.fromkeys(splits):
            values, only_class, confusion = self._figures(split).taken()
            for name, value in values.items():
                figure = f"{split}/{name}"
                self.log(figure, value, prog_bar=figure == self.monitor)
            self.one_class.pop(split, None)
            if confusion is not None:
                self.confusion[split] = confusion.tolist()
            if only_class >= 0:
                self.one_class[split] = self.spec.labels[only_class] if self.spec.labels else str(only_class)

    def official(self) -> dict[str, dict[str, float]]:
        """Return the metrics of the benchmark itself for each test split, from `predicted` of all processes."""
        if self.spec.official is None:
            return {}
        metric = official_metric(self.spec.official)
        predictions, figures = sorted(gather_lists(self.predicted), key=itemgetter(1)), {}  # by row of the split
        for split in dict.fromkeys(self.test_names):
            rows = [row for row in predictions if row[0] == split]
            figures[split] = metric.compute(predictions=[row[2] for row in rows], references=[row[3] for row in rows])
        return figures

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        keep_trained(checkpoint, self.trained, self.current_record())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.take(checkpoint_of(Path("the checkpoint"), checkpoint))

    def take(self, checkpoint: Checkpoint) -> None:
        """Load trained weights and on/off state. Raises UserError if they do not fit the network."""
        take(self.network, self.space, self.record, checkpoint)

    def current_record(self) -> ModelRecord:
        on = () if self.space is None else tuple(low_rank.element.key for low_rank in self.space.on())
        return replace(self.record, on=on)


def task_of(module: pl.LightningModule) -> FineTuning:
    """The task of a callback. Lightning's callbacks are not generic: their types allow any module."""
    return cast(FineTuning, module)


def network_inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in _NETWORK_INPUTS if name in batch}
