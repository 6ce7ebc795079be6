"""What Lightning needs to predict: the batches of this process, and a callback that keeps their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from datasets import Dataset

from actions.prediction.partial import Partial
from actions.run.console import say
from dataset.batching.collate import Collator
from dataset.batching.new_rows import NewBatches
from heterolora.common.checks import present
from heterolora.common.distributed import check_agreement
from heterolora.common.errors import UserError
from model.task.answers import Answer


class Predictions(pl.LightningDataModule):
    """Batches of the rows that have no answer yet."""

    def __init__(self, encoded: Dataset, collate: Collator, batch_size: int, keep: KeepAnswers) -> None:
        super().__init__()
        self._encoded, self._collate, self._size, self._keep = encoded, collate, batch_size, keep

    def predict_dataloader(self) -> NewBatches:
        trainer, done = present(self.trainer), self._keep.done
        return NewBatches(self._encoded, self._collate, self._size, done, trainer.global_rank, trainer.world_size)


class KeepAnswers(pl.Callback):
    """Collects the answers of this process, and appends them to the partial file after each batch.

    Before each batch it seeds the random numbers with the batch's number. So text that is drawn does not depend on the
    number of processes, nor on interruptions.

    Attributes:
        done: the rows that an earlier command has answered, the same in all processes.
        answers: those of this process; in the first process also those of the earlier command.
    """

    def __init__(self, partial: Partial, identity: str, rows: int, seed: int) -> None:
        self.partial, self.identity, self.rows, self.seed = partial, identity, rows, seed
        self.done: Sequence[int] = ()
        self.answers: list[Answer] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        check_agreement(
            {"the model, its options and the rows": self.identity}, expected="start all of them with the same files"
        )
        if trainer.is_global_zero:
            self.answers = [*self.partial.open(self.identity).values()]
        self.done = trainer.strategy.broadcast([answer.row for answer in self.answers])
        if self.done:
            say(f"{len(self.done):,} of {self.rows:,} rows are predicted already: continuing")

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        pl.seed_everything((self.seed + batch["number"]) % 2**32, verbose=False)

    def on_predict_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.partial.append(trainer.global_rank, outputs)
        self.answers += outputs

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, UserError | OSError) and (count := self.partial.count()):
            say(f"stopped after {count:,} of {self.rows:,} rows; the same command continues")
