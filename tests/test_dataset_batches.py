"""Which rows share a batch, in what order, on which process; padding; resuming."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset

from dataset.batching.collate import Collator
from dataset.batching.loader import ResumableLoader, Rows
from dataset.batching.sampler import GlobalBatchSampler, epoch_order
from tests.tiny import word_tokenizer

# Sampler


def global_batches(n, size, world, **options):
    """The batches of one epoch, put together from all ranks; fillers left out."""
    ranks = [list(GlobalBatchSampler(n, size // world, rank=rank, world=world, **options)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1, "a rank with fewer batches would leave the others waiting"
    return [sorted(index for batch in parts for index in batch if index >= 0) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("lengths", [None, "lengths"])
@pytest.mark.parametrize("n", [1, 11, 12, 13, 24, 100])
def test_batches_do_not_depend_on_the_number_of_processes(n, lengths):
    options = {"shuffle": True, "seed": 3, "lengths": lengths and np.random.default_rng(0).integers(1, 50, n)}
    one = global_batches(n, 12, 1, **options)
    assert sorted(index for batch in one for index in batch) == list(range(n)), "every row once"
    assert [len(batch) for batch in one[:-1]] == [12] * (len(one) - 1)
    for world in (2, 3, 4, 6, 12):
        assert global_batches(n, 12, world, **options) == one


def test_a_rank_without_a_row_gets_a_filler():
    last = [list(GlobalBatchSampler(9, 2, rank=rank, world=4))[-1] for rank in range(4)]
    assert last == [[8], [~8], [~8], [~8]]
    assert [len(GlobalBatchSampler(9, 2, rank=rank, world=4)) for rank in range(4)] == [2, 2, 2, 2]


def test_without_shuffling_file_order():
    assert list(GlobalBatchSampler(5, 2)) == [[0, 1], [2, 3], [4]]
    assert list(GlobalBatchSampler(5, 1, rank=1, world=2)) == [[1], [3], [~4]]


def test_without_shuffling_by_length():
    lengths = [3, 9, 1, 9, 4]
    assert list(GlobalBatchSampler(5, 2, lengths=lengths)) == [[1, 3], [4, 0], [2]]
    assert list(GlobalBatchSampler(5, 2, lengths=[7] * 5)) == [[0, 1], [2, 3], [4]]


def test_windows_have_the_rows_of_one_batch():
    options = {"seed": 3, "shuffle": True, "lengths": np.random.default_rng(0).integers(1, 50, 100)}
    batches = list(GlobalBatchSampler(100, 2, accumulate=4, **options))
    joined = [sorted(row for batch in batches[first : first + 4] for row in batch) for first in range(0, 50, 4)]
    assert joined == [sorted(batch) for batch in GlobalBatchSampler(100, 8, **options)]


def test_equal_lengths_change_nothing():
    assert (epoch_order(50, 1, 2, True, 4, [8] * 50) == epoch_order(50, 1, 2)).all()


def test_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(50, seed=1, epoch=2)
    torch.manual_seed(5)
    assert (epoch_order(50, seed=1, epoch=2) == order).all()
    assert (epoch_order(50, seed=1, epoch=3) != order).any()
    assert (epoch_order(50, seed=2, epoch=2) != order).any()
    assert (epoch_order(50, seed=2, epoch=1) != order).any()


def padding(order, lengths, size):
    """Pad tokens of an epoch."""
    batches = [lengths[order[first : first + size]] for first in range(0, len(order), size)]
    return sum(int((batch.max() - batch).sum()) for batch in batches)


def test_grouping_cuts_padding_and_still_differs_from_epoch_to_epoch():
    lengths = np.random.default_rng(0).integers(5, 200, 1003)
    plain = epoch_order(1003, 0, 0)
    first, second = (epoch_order(1003, 0, epoch, True, 8, lengths) for epoch in (0, 1))
    assert sorted(first) == list(range(1003))
    assert padding(first, lengths, 8) < 0.15 * padding(plain, lengths, 8)
    groups = [{frozenset(order[i : i + 8].tolist()) for i in range(0, 1000, 8)} for order in (first, second)]
    assert len(groups[0] & groups[1]) < 10
    longest = [int(lengths[first[i : i + 8]].max()) for i in range(0, 1000, 8)]
    falling = sum(one >= two for one, two in pairwise(longest))
    assert 0.35 < falling / len(longest) < 0.65, "batches are shuffled, not in order of length"


# Collating

TOKENIZER = word_tokenizer(["a b c"])
ROWS = [
    {"input_ids": [0, 6, 7, 8, 2], "context": 3, "length": 5, "target": "c", "index": 4, "weight": 1.0},
    {"input_ids": [0, 6], "context": 1, "length": 2, "target": "a", "index": 9, "weight": 0.0},
]


def test_causal_batch():
    batch = Collator(TOKENIZER)(ROWS)
    assert batch.keys() == {"input_ids", "attention_mask", "labels", "index", "weight", "tokens", "targets"}
    assert (batch["tokens"], batch["targets"]) == (7, 2)  # the second row is a filler
    assert batch["input_ids"].tolist() == [[0, 6, 7, 8, 2], [0, 6, 1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 8, 2], [-100, 6, -100, -100, -100]]
    assert batch["index"].tolist() == [4, 9]
    assert batch["weight"].tolist() == [1, 0]
    assert [batch[key].dtype for key in ("input_ids", "labels", "index", "weight")] == [
        *[torch.int64] * 3,
        torch.float32,
    ]


def test_a_real_token_that_is_also_the_pad_token_keeps_its_label():
    tokenizer = word_tokenizer(["a b c"], pad_token="</s>")  # common for decoders without a pad token
    batch = Collator(tokenizer)([{**ROWS[0], "context": 0}, ROWS[1]])
    assert batch["labels"].tolist() == [[0, 6, 7, 8, 2], [-100, 6, -100, -100, -100]]


def test_prompts_for_generation_are_padded_on_the_left():
    batch = Collator(TOKENIZER, generate=True)(ROWS)
    assert batch["prompt_ids"].tolist() == [[0, 6, 7], [1, 1, 0]]
    assert batch["prompt_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["target"] == ["c", "a"]


def test_padding_does_not_follow_the_tokenizers_own_side():
    tokenizer = word_tokenizer(["a b c"], padding_side="left")
    assert Collator(tokenizer)(ROWS)["input_ids"].tolist()[1] == [0, 6, 1, 1, 1]
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize(("labels", "dtype"), [([1, 0], torch.int64), ([0.5, 2.0], torch.float32)])
def test_classification_batch(labels, dtype):
    rows = [
        {"input_ids": [0, 6], "token_type_ids": [0, 1], "labels": labels[0], "length": 2, "index": 0, "weight": 1.0},
        {"input_ids": [0], "token_type_ids": [0], "labels": labels[1], "length": 1, "index": 1, "weight": 1.0},
    ]
    batch = Collator(TOKENIZER)(rows)
    assert batch["labels"].tolist() == labels
    assert batch["labels"].dtype == dtype
    assert batch["token_type_ids"].tolist() == [[0, 1], [0, 0]]


# Loading


def test_a_filler_is_a_row_of_weight_nought():
    rows = Rows(Dataset.from_dict({"x": [10, 11, 12]})).__getitems__([2, ~1])
    assert rows == [{"x": 12, "index": 2, "weight": 1.0}, {"x": 11, "index": 1, "weight": 0.0}]


def loader(workers=0, n=13, **options):
    encoded = Dataset.from_dict({"input_ids": [[0] * (1 + i % 3) for i in range(n)], "labels": [0] * n})
    sampler = GlobalBatchSampler(n, 2, seed=5, shuffle=True, **options)
    return ResumableLoader(encoded, sampler, Collator(TOKENIZER), workers)


def read(loader, epoch, count=None):
    """(epoch, rows) of `count` batches of an epoch, or of all that are left."""
    loader.batch_sampler.set_epoch(epoch)
    batches = []
    for batch in loader:
        batches.append((epoch, batch["index"].tolist()))
        if len(batches) == count:
            break
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_exactly_the_batches_that_are_left(workers):
    whole = [batch for epoch in range(3) for batch in read(loader(), epoch)]
    assert len(whole) == 21
    assert len({tuple(rows) for _, rows in whole}) > 14, "epochs differ"
    for kill in range(0, 14) if workers == 0 else (0, 3, 7, 10):
        first, done = loader(workers), []
        for epoch in range(kill // 7 + 1):
            done += read(first, epoch, min(7, kill - len(done)) or None) if kill > len(done) else []
        state = first.state_dict()
        assert all(type(value) is int for value in state.values()), "plain values only: weights_only=True reads them"
        second = loader(workers)
        second.load_state_dict(state)
        begun = {} if state["position"] < 7 else {"epoch": state["epoch"] + 1, "position": 0}
        assert second.state_dict() == state | begun
        assert len(second) == 7
        rest = [batch for epoch in range(second.batch_sampler.epoch, 3) for batch in read(second, epoch)]
        assert done + rest == whole


def test_a_position_belongs_to_its_epoch():
    one = loader()
    read(one, 0)
    one.batch_sampler.set_epoch(1)
    state = one.state_dict()
    assert (state["epoch"], state["position"]) == (1, 0), "nothing of epoch 1 was read yet"
    one.load_state_dict(state | {"position": 3})
    assert read(one, 2) == read(loader(), 2)
    one.load_state_dict(state | {"position": 3})
    assert read(one, 1) == read(loader(), 1)[3:]
    assert read(one, 1) == read(loader(), 1), "read again, the epoch is whole"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_epoch_may_be_told_after_the_iterator_was_made(workers):
    late = loader(workers)
    iterator = iter(late)
    late.batch_sampler.set_epoch(2)
    assert [(2, batch["index"].tolist()) for batch in iterator] == read(loader(), 2)


def test_loading_moves_no_random_stream():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(loader(workers=1), 0)
    assert torch.equal(torch.get_rng_state(), before)
