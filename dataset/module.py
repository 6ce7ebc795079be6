"""The LightningDataModule: from an entry and a few settings to the batches of this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytorch_lightning as pl
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dataset.collate import Batch, Collator
from dataset.encode import Lengths, encode, lengths
from dataset.loader import ResumableLoader, Rows
from dataset.sampler import GlobalBatchSampler
from dataset.source import Splits, read_splits
from dataset.spec import DatasetSpec


@dataclass(frozen=True)
class DataSettings:
    """How the data are read.

    Attributes:
        batch_size: rows per batch and process.
        max_token_len: tokens of a row, or of a block of packed text; `None`: what the model takes, within reason.
        max_target_len: tokens of a summary; `None`: a default within `max_token_len`.
        group_by_length: rows of similar length share a training batch.
        num_workers: processes that load batches.
        seed: of the order of the training rows.
        saved_path: `--dataset-saved-path`; `None`: the entry's own source.
        cache: keep converted and tokenised data for the next run.
    """

    batch_size: int
    max_token_len: int | None = None
    max_target_len: int | None = None
    group_by_length: bool = False
    num_workers: int = 0
    seed: int = 0
    saved_path: Path | None = None
    cache: bool = True


class TextDataModule(pl.LightningDataModule):
    """Batches of one data set, shared out over the processes of `self.trainer`.

    Call `read` first: it finds what is wrong with the data before a model is loaded. Call `attach` as soon as there is
    a tokenizer. Give the trainer `use_distributed_sampler=False`: the samplers here share the rows out themselves.
    """

    def __init__(self, spec: DatasetSpec, settings: DataSettings) -> None:
        super().__init__()
        self.spec, self.settings = spec, settings
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._limits: Lengths | None = None
        self._encoded: dict[int, Dataset] = {}  # by id of the raw split: a stand-in for a test split is encoded once

    @cached_property
    def _splits(self) -> Splits:
        return read_splits(self.spec, self.settings.saved_path, self.settings.cache)

    def read(self) -> Splits:
        """The checked rows before tokenising; read once.

        Raises:
            UserError: as `dataset.source.read_splits`.
        """
        return self._splits

    def attach(self, tokenizer: PreTrainedTokenizerBase, model_limit: int | None = None) -> None:
        """Tokenizer (with a pad token) and number of positions of the model that the batches are for.

        Raises:
            UserError: lengths that the model does not take, or that leave no room.
        """
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no pad token")
        settings = self.settings
        self._limits = lengths(self.spec, tokenizer, settings.max_token_len, settings.max_target_len, model_limit)
        self._tokenizer = tokenizer
        self._encoded.clear()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was decided about the splits, one sentence each."""
        return self.read().notes

    @property
    def limits(self) -> Lengths:
        """Tokens of a row and of a summary, as resolved by `attach`."""
        if self._limits is None:
            raise RuntimeError("attach a tokenizer first")
        return self._limits

    @property
    def validation_names(self) -> tuple[str, ...]:
        return tuple(self.read().validation)

    @property
    def test_names(self) -> tuple[str, ...]:
        return tuple(self.read().test)

    def prepare_data(self) -> None:
        """Fills the cache, on one process of each machine; without a cache every process encodes for itself."""
        if self.settings.cache:
            self.setup(self.trainer.state.fn if self.trainer else None)

    def setup(self, stage: str | None = None) -> None:
        """Encodes the splits of a stage (`fit`, `validate`, `test`; `None`: all)."""
        splits = self.read()
        if stage in ("fit", None):
            self.encoded(splits.train)
        if stage in ("fit", "validate", None):
            for rows in splits.validation.values():
                self.encoded(rows)
        if stage in ("test", None):
            for rows in splits.test.values():
                self.encoded(rows)

    def encoded(self, rows: Dataset) -> Dataset:
        """A split of `read()` as token ids; encoded once."""
        if id(rows) not in self._encoded:
            limits = self.limits
            self._encoded[id(rows)] = encode(rows, self.spec, self._tokenizer, limits, self.settings.cache)
        return self._encoded[id(rows)]

    def train_dataloader(self) -> ResumableLoader:
        encoded = self.encoded(self.read().train)
        grouping = encoded.with_format("numpy")["length"][:] if self.settings.group_by_length else None
        sampler = GlobalBatchSampler(
            len(encoded), self.settings.batch_size, self.settings.seed, *self._place(), shuffle=True, lengths=grouping
        )
        return self._loader(encoded, sampler, generate=False)

    def val_dataloader(self) -> list[ResumableLoader]:
        """One for each of `validation_names`."""
        return [self._evaluation_loader(rows) for rows in self.read().validation.values()]

    def test_dataloader(self) -> list[ResumableLoader]:
        """One for each of `test_names`."""
        return [self._evaluation_loader(rows) for rows in self.read().test.values()]

    def train_batches_per_epoch(self, world: int) -> int:
        """Batches of an epoch on each of `world` processes."""
        return -(-len(self.encoded(self.read().train)) // (self.settings.batch_size * world))

    @property
    def scoring_batch_count(self) -> int:
        """Scoring batches in the whole training set; the last one may be short."""
        return self.train_batches_per_epoch(world=1)

    def scoring_batches(self, count: int, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        """This process's share of the first `count` scoring batches, collated: batch i belongs to rank i mod `world`.

        A scoring batch has `batch_size` rows, whatever the number of processes, of the training set in file order. No
        random stream is touched.
        """
        encoded = self.encoded(self.read().train)
        rows, collate, size = Rows(encoded), Collator(self._tokenizer), self.settings.batch_size
        for batch in range(rank, min(count, self.scoring_batch_count), world):
            yield collate(rows.__getitems__(list(range(batch * size, min((batch + 1) * size, len(encoded))))))

    def _place(self) -> tuple[int, int]:
        """(rank, world) of this process."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _evaluation_loader(self, rows: Dataset) -> ResumableLoader:
        encoded = self.encoded(rows)
        sampler = GlobalBatchSampler(len(encoded), self.settings.batch_size, 0, *self._place())
        return self._loader(encoded, sampler, generate=self.spec.task == "summarization")

    def _loader(self, encoded: Dataset, sampler: GlobalBatchSampler, generate: bool) -> ResumableLoader:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        collate = Collator(self._tokenizer, generate)
        return ResumableLoader(encoded, sampler, collate, self.settings.num_workers, pin_memory=on_gpu)
