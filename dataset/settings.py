"""The options of the data module. Importing this file is cheap, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dataset.option import at_least, idle_without, option

_TRAINING = ("train", "train-dyrealloc")
_LOADING = ("test", *_TRAINING)  # imp-test makes its batches itself


@dataclass(frozen=True)
class DataOptions:
    """How a data set is read, tokenised and batched."""

    # fmt: off
    batch_size: int = option(8, "rows per device and batch", at_least(1), resume="global_batch")
    max_token_len: int | None = option(None, "longest input in tokens (block length for language modelling); by "
        "default the model's limit, at most 512", at_least(2), from_checkpoint=True)
    max_target_len: int = option(64, "longest summary in tokens", at_least(1), from_checkpoint=True,
        idle=idle_without("task", "summarization"))
    group_by_length: bool = option(False, "batch rows of similar length together, which needs less padding",
        actions=_TRAINING, resume="epoch_end")
    num_workers: int = option(0, "data loading processes", at_least(0), aliases=("--cpu",), actions=_LOADING,
        resume="free")
    dataset_saved_path: Path | None = option(None,
        "read the data set from a save_to_disk folder or a folder of jsonl, csv or parquet files", from_checkpoint=True,
        resume="free")
    disable_dataset_cache: bool = option(False, "tokenise again instead of reading the cache", resume="free")
