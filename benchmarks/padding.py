"""Padding each batch to its longest row, against padding every batch to one length: speed-up on a real data set.

An epoch's batches are padded four ways: to the longest row of the batch, with rows of similar length in a batch
(--group-by-length) and without, to the longest row of the data, and to --tokens. Padded tokens are counted over
the whole epoch; --batches of them, evenly spread over it, are timed as training steps of opt_lora at q and v.

example:
  python -m benchmarks padding --dataset rte --dataset-saved-path FOLDER
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from tools.cli import whole_number

import numpy as np
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from actions.run.console import say, set_log_level
from benchmarks import measure, subjects
from dataset import registry
from dataset.batching.module import TextDataModule
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from heterolora.saliency.problem import Batch
from options.data import DataOptions
from options.ranges import at_least

PER_BATCH, GROUPED = "batch", "batch, grouped by length"
PIECES = 8000  # tokens of the tokenizer if none is given


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(hidden_size=256, layers=4, tokens=512)
    parser.add_argument("--dataset", default="rte", help="a classification data set (default: rte)")
    parser.add_argument("--dataset-saved-path", type=Path, metavar="DIR", help="as in python -m main train")
    parser.add_argument("--tokenizer", metavar="NAME", help="hub name or folder (default: BPE, trained on the data)")
    parser.add_argument(
        "--batches", type=whole_number(at_least(1)), default=8, metavar="N", help="timed in each round (default: 8)"
    )


def run(args: argparse.Namespace) -> None:
    set_log_level("warning")
    spec = registry.get(args.dataset)
    if spec.task != "classification":
        raise UserError(
            f"--dataset '{args.dataset}' is not for classification", "expected a classification data set, such as rte"
        )
    epochs = {name: read_epoch(spec, args, grouped=name == GROUPED) for name in (PER_BATCH, GROUPED)}
    longest = max(batch["input_ids"].shape[1] for batch in epochs[PER_BATCH])
    for name, length in (("data", longest), ("--tokens", args.tokens)):
        epochs[f"{name} ({length})"] = [padded(batch, length) for batch in epochs[PER_BATCH]]
    *_, reference = epochs

    vocabulary = 1 + max(int(batch["input_ids"].max()) for batch in epochs[PER_BATCH])
    base, lora = subjects.base(args, vocabulary), subjects.lora(args.rank, subjects.QV)
    step = partial(subjects.training_step, subjects.adapted(base, lora)[0])
    steps = {name: step(*spread(batches, args.batches)) for name, batches in epochs.items()}
    seconds = measure.by_turns(steps, args.rounds, args.device, warm_up=1)
    say(measure.heading(args, f"{args.batches} training steps on {spec.name}, by what batches are padded to"))
    table = Table("padded to longest of", "tokens, epoch", "padding", f"seconds, {args.rounds} rounds", "speed-up")
    for name, batches in epochs.items():
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        real = sum(int(batch["attention_mask"].sum()) for batch in batches)
        faster = seconds.ratio(reference, name)
        table.add_row(name, f"{tokens:,}", f"{1 - real / tokens:.0%}", str(seconds.spread(name)), str(faster))
    say(table)


def read_epoch(spec: DatasetSpec, args: argparse.Namespace, grouped: bool) -> list[Batch]:
    """The batches of the first epoch, as training gets them, with the tensors that the network takes."""
    saved = args.dataset_saved_path
    options = DataOptions(args.rows, args.tokens, group_by_length=grouped, dataset_saved_path=saved)
    data = TextDataModule(spec, options)
    texts = (row[column] for row in data.splits.train for column in spec.columns)
    given = args.tokenizer and AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=False)
    data.attach(given or make_tokenizer(texts))
    names = ("input_ids", "attention_mask", "labels")
    return [{name: batch[name].to(args.device) for name in names} for batch in data.train_dataloader()]


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE, as in GPT-2 and OPT, trained on `texts`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special, alphabet = ["<pad>", "</s>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="</s>")


def padded(batch: Batch, length: int) -> Batch:
    """The batch with rows of `length` tokens."""
    more = length - batch["input_ids"].shape[1]
    return {**batch, **{name: F.pad(batch[name], (0, more)) for name in ("input_ids", "attention_mask")}}


def spread(batches: Sequence[Batch], count: int) -> list[Batch]:
    """`count` of the batches, evenly spread, without the last of the epoch, which may be short."""
    places = np.linspace(0, len(batches) - 2, count).astype(int)
    return [batches[place] for place in places]
