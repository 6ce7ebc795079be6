"""The LightningDataModule: from a data set entry and options to the batches of this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytorch_lightning as pl
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from dataset.batching.collate import Collator
from dataset.batching.loader import ResumableLoader, Rows
from dataset.batching.sampler import GlobalBatchSampler, epoch_order
from dataset.batching.stream import Streamed, StreamingLoader
from dataset.encoding.encode import (
    DEFAULT_LENGTH,
    FEW_SHOT_LENGTH,
    Lengths,
    cache_key,
    encode,
    encode_some,
    lengths,
    truncated,
)
from dataset.encoding.few_shot import with_examples
from dataset.encoding.identity import rows_digest, tokenizer_digest
from dataset.reading.checked import checked
from dataset.reading.source import read_splits
from dataset.spec import DatasetSpec
from heterolora.saliency.problem import Batch
from options.data import DataOptions


class TextDataModule(pl.LightningDataModule):
    """Batches of one data set, divided among the processes of `self.trainer`.

    The constructor reads the rows and calls the entry's functions on them, so that mistakes in the data are found
    before a model is loaded. Then call `attach` with the tokenizer. The trainer needs `use_distributed_sampler=False`,
    because the samplers here divide the rows themselves. `seed` determines the order of the training rows.

    Raises UserError in the same cases as `dataset.reading.source.read_splits` and `dataset.encoding.render.render`.
    """

    tokenizer: PreTrainedTokenizerBase  # set by `attach`, as `limits` is
    limits: Lengths

    def __init__(self, spec: DatasetSpec, options: DataOptions, seed: int = 0, streamed: int = 0) -> None:
        super().__init__()
        self.spec, self.options, self.seed = spec, options, seed
        self._streamed = streamed  # batches of a whole run with `--streaming`, of each process
        self._cache = not options.disable_dataset_cache
        self.splits = read_splits(
            spec,
            None if spec.own else options.dataset_saved_path,
            self._cache,
            options.validation_share,
            options.validation_seed if spec.own else None,
            examples=self.few_shot > 0,
            buffer=options.buffer,
        )
        if self.few_shot:
            self.splits = with_examples(self.splits, spec, self.few_shot)
        self.validation_names, self.test_names = tuple(self.splits.validation), tuple(self.splits.test)
        self._digests = {id(rows): rows_digest(rows, spec) for rows in self.splits.each}
        self._tokenizer_digest = ""
        self._encoded: dict[int, Dataset] = {}  # by id of the raw split

    def attach(self, tokenizer: PreTrainedTokenizerBase, model_limit: int | None = None) -> None:
        """Set the tokenizer, which has a pad token, and the number of positions of the model.

        Raises UserError if the lengths exceed the model's limit, or leave no room for text.
        """
        if tokenizer.pad_token_id is None:
            raise ValueError("the tokenizer has no pad token")
        options = self.options
        default = FEW_SHOT_LENGTH if self.few_shot else DEFAULT_LENGTH
        self.limits = lengths(self.spec, tokenizer, options.max_token_len, options.max_target_len, model_limit, default)
        self.tokenizer, self._tokenizer_digest = tokenizer, tokenizer_digest(tokenizer, self.spec.chat)
        self._encoded.clear()

    @property
    def digests(self) -> tuple[str, ...]:
        """One of the rows of each split: of all texts and labels."""
        return tuple(self._digests.values())

    @property
    def identity(self) -> Mapping[str, str]:
        """What a run must have been trained on to be resumed with these rows. The loader saves it."""
        return {"digest of the rows": self._digests[id(self.splits.train)]}

    @property
    def few_shot(self) -> int:
        """The number of examples before each measured question."""
        return 0 if self.spec.choices is None else self.options.few_shot

    @property
    def packs(self) -> bool:
        """Whether the training rows are joined. Text for language modelling is in blocks already."""
        return self.options.packing and not self.spec.classifies and not self.spec.packed

    def prepare_data(self) -> None:
        """Fill the cache, on one process of each machine. Without a cache every process encodes for itself."""
        if self._cache:
            self.setup(self.trainer.state.fn if self.trainer else None)

    def setup(self, stage: str | None = None) -> None:
        """Encode the splits of a stage (`fit`, `validate`, `test`; `None`: all)."""
        splits = self.splits
        validation, test = splits.validation.values(), splits.test.values()
        needed = {None: splits.each, "fit": [splits.train, *validation], "validate": validation, "test": test}
        for rows in needed[stage]:
            self.encoded(rows)

    def encoded(self, rows: Dataset) -> Dataset:
        """Return one of `splits` as token ids. It is encoded once."""
        if id(rows) not in self._encoded:
            key = cache_key(self._digests[id(rows)], self.spec, self._tokenizer_digest, self.limits)
            cached = key if self._cache else None
            self._encoded[id(rows)] = encode(
                rows, self.spec, self.tokenizer, self.limits, cached, self.options.num_workers
            )
        return self._encoded[id(rows)]

    def is_encoded(self, rows: Dataset) -> bool:
        """Whether one of `splits` is in token ids already."""
        return id(rows) in self._encoded

    def truncated(self, rows: Dataset) -> int:
        """Return how many rows of one of `splits` were too long: 0 for packed text, of which nothing is lost.

        A question that lost examples only is not counted.
        """
        encoded = self.encoded(rows)
        if self.spec.choices is not None:
            return sum(encoded["cut"])
        if self.spec.packed:
            return 0
        found = _lengths(encoded)
        limit = self.limits.max_token_len if not self.spec.generates else 1  # a summary is cut before
        longest = np.flatnonzero(found >= limit)
        return truncated(rows.select(longest), found[longest], self.spec, self.tokenizer) if len(longest) else 0

    def lost_examples(self, rows: Dataset) -> int:
        """Return how many rows of one of `splits` have fewer than `few_shot` examples."""
        return sum(shots < self.few_shot for shots in self.encoded(rows)["shots"])

    def train_dataloader(self) -> ResumableLoader | StreamingLoader:
        if self.splits.stream is not None:
            return self._streaming_loader(self.splits.stream)
        encoded = self.encoded(self.splits.train)
        groups = self.options.group_by_length and not self.spec.packed
        return self._loader(
            encoded,
            self._training_collator,
            self.identity,
            seed=self.seed,
            shuffle=True,
            lengths=_lengths(encoded) if groups else None,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
        )

    def val_dataloader(self) -> list[ResumableLoader]:
        """Return one for each of `validation_names`."""
        return self._evaluation_loaders(self.splits.validation, "limit_val_batches")

    def test_dataloader(self) -> list[ResumableLoader]:
        """Return one for each of `test_names`."""
        return self._evaluation_loaders(self.splits.test, "limit_test_batches")

    def train_batches_per_epoch(self, world: int) -> int:
        """Return the number of batches of an epoch on each of `world` processes. A streamed run is one epoch."""
        if self.splits.stream is not None:
            return self._streamed
        return -(-len(self.encoded(self.splits.train)) // (self.options.batch_size * world))

    def batches(self, rows: Dataset, world: int) -> int | None:
        """Return the number of batches of one of `splits` on each process. None if it is packed, and not encoded."""
        if rows is self.splits.train and self.splits.stream is not None:
            return self._streamed
        known = self._encoded.get(id(rows), None if self.spec.packed else rows)
        return None if known is None else -(-len(known) // (self.options.batch_size * world))

    @property
    def scoring_batch_count(self) -> int:
        """Scoring batches in the whole training set, or in its first rows if it is streamed. The last may be short."""
        return -(-len(self.encoded(self.splits.train)) // self.options.batch_size)

    def scoring_batches(
        self, count: int, rank: int = 0, world: int = 1, filled: bool = False, by_length: bool = False
    ) -> Iterator[Batch]:
        """Yield those of the first `count` scoring batches that are this process's: batch i is for rank i mod `world`.

        A scoring batch has `batch_size` rows of the training set in file order, for any number of processes. No random
        numbers are drawn.

        Args:
            filled: whether a process that would have a batch less than another gets one more, of one filler row.
            by_length: whether rows of similar length share a batch if each row counts alike in the loss, so for
                classification. The rows are the same, and so are those of a short last batch.
        """
        encoded = self.encoded(self.splits.train)
        rows, collate, size = Rows(encoded), Collator(self.tokenizer), self.options.batch_size
        count = min(count, self.scoring_batch_count)
        order = np.arange(min(count * size, len(encoded)))
        if by_length and self.spec.classifies:
            full = len(order) // size * size
            order[:full] = epoch_order(full, 0, 0, shuffle=False, lengths=_lengths(encoded)[:full])
        for batch in range(rank, count, world):
            yield collate(rows.__getitems__(order[batch * size : (batch + 1) * size].tolist()))
        if filled and rank >= count % world > 0:
            yield collate(rows.__getitems__([~0]))

    def _evaluation_loaders(self, splits: Mapping[str, Dataset], limit: str) -> list[ResumableLoader]:
        """Return a loader for each split. If all rows are evaluated, those of similar length share a batch."""
        all_rows = self.trainer is None or str(getattr(self.trainer, limit)) == "1.0"
        collate = Collator(self.tokenizer, self.spec.generates, self.spec.choices is not None)
        encoded = map(self.encoded, splits.values())
        return [self._loader(rows, collate, lengths=_lengths(rows) if all_rows else None) for rows in encoded]

    def _streaming_loader(self, stream: IterableDataset) -> StreamingLoader:
        options, (rank, world), on_gpu = self.options, *self._process
        streamed = Streamed(
            name=self.spec.name,
            rows=stream,
            encode=partial(_encoded, replace(self.spec, opened=None), self.tokenizer, self.limits),
            collate=self._training_collator,
            batch_size=options.batch_size,
            buffer=options.shuffle_buffer,
            seed=self.seed,
            grouped=options.group_by_length and not self.spec.packed,
            accumulate=self.trainer.accumulate_grad_batches if self.trainer else 1,
            parts=world * max(1, options.num_workers),
        )
        return StreamingLoader(streamed, self._streamed, rank, options.num_workers, on_gpu, self.identity)

    @property
    def _training_collator(self) -> Collator:
        return Collator(self.tokenizer, pack_to=self.limits.max_token_len if self.packs else None)

    @property
    def _process(self) -> tuple[tuple[int, int], bool]:
        """The number of this process and of all, and whether it has a GPU."""
        if (trainer := self.trainer) is None:
            return (0, 1), False
        return (trainer.global_rank, trainer.world_size), trainer.strategy.root_device.type == "cuda"

    def _loader(
        self, encoded: Dataset, collate: Collator, identity: Mapping[str, str] | None = None, **sampling: Any
    ) -> ResumableLoader:
        """Return the loader of this process. `sampling` are arguments of `GlobalBatchSampler`."""
        (rank, world), on_gpu = self._process
        sampler = GlobalBatchSampler(len(encoded), self.options.batch_size, rank=rank, world=world, **sampling)
        return ResumableLoader(encoded, sampler, collate, self.options.num_workers, on_gpu, identity)


def _encoded(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths, rows: Dataset) -> Dataset:
    """Check and encode some rows of a stream."""
    return encode_some(
        checked(spec, f"a block of data set '{spec.name}'", rows, [], some=True), spec, tokenizer, limits
    )


def _lengths(encoded: Dataset) -> np.ndarray:
    """Return the number of tokens of each row."""
    return encoded.with_format("numpy")["length"][:]
