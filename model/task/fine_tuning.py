"""The base class of the three tasks: the global loss, exact metrics, and checkpoints of the trained weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from dataset.official import official_metric
from dataset.spec import DatasetSpec
from heterolora.common.distributed import gather_lists
from heterolora.elements.search_space import SearchSpace
from heterolora.saliency.problem import Batch, Loss
from model import metrics
from model.checkpoint import Checkpoint, Record, checkpoint_of, keep_trained
from model.sharding import Sharding, is_sharded, shard, sharded_names
from model.task.frozen_prefix import FrozenPrefix
from model.task.optimization import batches_within, build_optimizer, build_scheduler, coming_rates, steps_of_run
from model.task.rows import Answers, RowResult
from model.task.window import Window
from model.trained import take, trained_names
from options.optimization import Optimization

_NETWORK_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


class FineTuning(pl.LightningModule, ABC):
    """A network and its task.

    Args:
        network: the Hugging Face model, adapted or plain.
        space: its search space. None for a plain model, which is trained completely.
        validation_names: the split of each validation dataloader; `test_names`: of each test dataloader.
        record: the identity of the model, for checkpoints.
        batches_per_epoch: number of processes -> training batches of an epoch on each of them.
        metric: the metric, or `loss`, that selects the best checkpoint. None: the data set's first metric.
        sharding: how the base, or a plain model, is divided over processes. None: every process holds all of it.
    """

    def __init__(
        self,
        network: PreTrainedModel,
        space: SearchSpace | None,
        spec: DatasetSpec,
        validation_names: Sequence[str],
        test_names: Sequence[str],
        optimization: Optimization,
        record: Record,
        batches_per_epoch: Callable[[int], int],
        sharding: Sharding | None = None,
        metric: str | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False  # checkpoints lack the base; `take` checks them
        self.network = network.train()
        self.space, self.spec, self.optimization, self.record = space, spec, optimization, record
        self.validation_names, self.test_names = tuple(validation_names), tuple(test_names)
        self.batches_per_epoch, self.sharding = batches_per_epoch, sharding
        splits = dict.fromkeys((*self.validation_names, *self.test_names))
        self.mean_loss = nn.ModuleDict({split: metrics.WeightedMean() for split in splits})
        chooses = spec.choices is not None
        self.running = nn.ModuleDict({split: metrics.build(spec.metrics, spec.num_labels, chooses) for split in splits})
        counted = splits if spec.task == "classification" and not spec.regression else ()
        self.only_class = nn.ModuleDict({split: metrics.OnlyClass(spec.num_labels) for split in counted})
        self.one_class: dict[str, str] = {}  # split -> the class of all predictions of the last evaluation
        self.metric = metric or spec.metrics[0]
        self.trained = trained_names(network, space)
        self.official: dict[str, dict[str, float]] = {}
        self.window = Window()
        self.frozen_prefix: FrozenPrefix | None = None  # set for --cache-frozen-prefix
        self.uncompiled: Callable[[], AbstractContextManager[None]] = nullcontext  # set for --compile
        self.global_loss = torch.zeros(())  # of the last optimizer step: the mean over its window on all processes
        self.keeps_rows = False  # whether evaluation fills `rows`
        self.rows: list[RowResult] = []  # of this process
        self._predictions: list[tuple[str, int, Any, Any]] = []

    @property
    def monitor(self) -> str:
        """The logged value that selects the best checkpoint, of the first validation split."""
        return f"{self.validation_names[0]}/{self.metric}"

    @property
    def monitor_mode(self) -> Literal["max", "min"]:
        return metrics.mode(self.metric)

    # ---- what a task defines

    @abstractmethod
    def loss(self, batch: Batch) -> Loss:
        """Returns the training loss of a batch."""

    @abstractmethod
    def predictions(self, batch: Batch, loss: Loss) -> tuple[Any, Any]:
        """Returns the two arguments of the running metrics' `update`, without filler rows."""

    @abstractmethod
    def row_counts(self, batch: Batch, loss: Loss) -> tuple[Tensor, Answers | None]:
        """Returns what each row (rows,) of an evaluated batch counts, 1 or its target tokens, and its label and
        prediction: None for a task without labels. Filler rows have values too.
        """

    def official_pairs(self, first: Any, second: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        """Converts the result of `predictions` to predictions and references for the benchmark's own metric."""
        return first, second

    # ---- several processes

    def configure_model(self) -> None:
        """Before Lightning moves the network to its device, at every `fit`, `validate` and `test`."""
        self.shard(self.trainer.strategy.root_device)

    def shard(self, device: torch.device) -> None:
        """Shards the base, or a plain model, if it is to be sharded. Needs the process group."""
        if self.sharding is not None:
            shard(self.network, self.space, self.sharding, device)
            self._ddp_params_and_buffers_to_ignore = sharded_names(self)  # Lightning would broadcast them

    # ---- training

    def on_train_start(self) -> None:
        """Sets the learning rates of the schedule. A checkpoint restores those of a run of another length."""
        for config in self.trainer.lr_scheduler_configs:
            for number, group in enumerate(config.scheduler.optimizer.param_groups):
                group["lr"] = next(coming_rates(config.scheduler, number))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if batch_idx % self.trainer.accumulate_grad_batches == 0:  # Lightning clears the gradients now
            self.window.start()
        with self._prefix_reused(batch):
            loss = self.loss(batch)
        return self.window.add(loss, averaged=self._averages_gradients())

    def _prefix_reused(self, batch: Batch) -> AbstractContextManager[None]:
        prefix = self.frozen_prefix
        return nullcontext() if prefix is None else prefix.reused(batch, network_inputs(batch))

    def on_after_backward(self) -> None:
        """At the end of an accumulation window, makes the gradients those of its mean loss on all processes."""
        if self.trainer.fit_loop._should_accumulate():
            return
        # Lightning divides each loss by the number of batches of a full window.
        divided_by, averaged = self.trainer.accumulate_grad_batches, self._averages_gradients()
        self.global_loss = self.window.finish(self.trainer.optimizers[0], divided_by, averaged)

    def _averages_gradients(self) -> bool:
        """Returns whether the backward pass averages gradients over processes."""
        sharded = self.space is None and is_sharded(self.network)
        return sharded or isinstance(self.trainer.strategy.model, DistributedDataParallel)

    def configure_optimizers(self) -> dict[str, Any]:
        by_name = dict(self.network.named_parameters(remove_duplicate=False))
        parameters = dict.fromkeys(by_name[name] for name in self.trained)  # tied weights once
        optimizer = build_optimizer(parameters, self.optimization, self.space)
        schedule = build_scheduler(optimizer, self.total_steps(), self.optimization)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def train_batches(self) -> int:
        """Returns the number of training batches of an epoch, of this process, within `--limit-train-batches`."""
        return batches_within(self.batches_per_epoch(self.trainer.world_size), self.trainer.limit_train_batches)

    def total_steps(self) -> float:
        """Returns the number of optimizer steps of the whole run.

        Lightning's own estimate creates the training loader before a checkpoint restores its position.
        """
        trainer, batches = self.trainer, self.train_batches()
        return steps_of_run(batches, trainer.accumulate_grad_batches, trainer.max_epochs, self.optimization.max_steps)

    # ---- evaluation

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        with self.uncompiled():
            self._evaluate(batch, self.validation_names[dataloader_idx])

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        split = self.test_names[dataloader_idx]
        with self.uncompiled():
            predicted = self._evaluate(batch, split)
        if self.spec.official is not None:
            kept = batch["index"][batch["weight"] > 0].tolist()
            pairs = zip(kept, *self.official_pairs(*predicted), strict=True)
            self._predictions += [(split, *pair) for pair in pairs]

    def on_validation_epoch_end(self) -> None:
        self._log_metrics(self.validation_names)

    def on_test_epoch_start(self) -> None:
        self._predictions, self.official = [], {}

    def on_test_epoch_end(self) -> None:
        self._log_metrics(self.test_names)
        if self.spec.official is not None:
            self.official = self._official_metrics()

    def _evaluate(self, batch: Batch, split: str) -> tuple[Any, Any]:
        loss = self.loss(batch)
        pair = self.predictions(batch, loss)
        if self.keeps_rows:
            kept = batch["weight"] > 0
            self.rows += RowResult.of_batch(split, batch["index"], kept, loss.each, *self.row_counts(batch, loss))
        if bool((batch["weight"] > 0).any()):  # a process without rows of the last batch gets a filler row
            self.mean_loss[split].update(loss.total, loss.count)
            self.running[split].update(*pair)
            if split in self.only_class:
                self.only_class[split].update(*pair)
        return pair

    def _log_metrics(self, splits: Sequence[str]) -> None:
        for split in dict.fromkeys(splits):
            values = {"loss": self.mean_loss[split].compute(), **self.running[split].compute()}
            for name, value in values.items():
                figure = f"{split}/{name}"
                self.log(figure, value, prog_bar=figure == self.monitor)
            if split in self.only_class:
                self.one_class.pop(split, None)
                if (found := int(self.only_class[split].compute())) >= 0:
                    self.one_class[split] = self.spec.labels[found] if self.spec.labels else str(found)
                self.only_class[split].reset()
            self.mean_loss[split].reset()
            self.running[split].reset()

    def _official_metrics(self) -> dict[str, dict[str, float]]:
        """Returns the metrics of the benchmark itself, over all rows of all processes."""
        predictions = sorted(gather_lists(self._predictions), key=lambda row: row[1])  # by row of the split
        metric, figures = official_metric(self.spec.official), {}
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
        """Loads trained weights and on/off state. Raises UserError if they do not fit the network."""
        take(self.network, self.space, self.record, checkpoint)

    def current_record(self) -> Record:
        on = () if self.space is None else tuple(low_rank.element.key for low_rank in self.space.on())
        return replace(self.record, on=on)


def network_inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: batch[name] for name in _NETWORK_INPUTS if name in batch}
