"""The data module alone, under Lightning, and with several processes."""

from __future__ import annotations

import itertools
import json

import pytest
import pytorch_lightning as pl
import torch

from dataset.batching.module import TextDataModule
from dataset.encoding.encode import encode
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from options.data import DataOptions
from tests.quick import some_slow
from tests.tiny import word_tokenizer
from tests.trainer import quiet_trainer

N = {"train": 13, "validation": 5, "test": 3}


def rows(split, seed):
    return [{"text": "word " * (1 + 7 * i % 5), "answer": "a b", "label": i % 2} for i in range(N[split])]


def words(row):
    return row["text"].strip()


def answer(row):
    return row["answer"]


CLASSES = DatasetSpec("classes", "classification", ("text",), ("accuracy",), labels=("no", "yes"), generate=rows)
SUMMARIES = DatasetSpec(
    "summaries", "summarization", ("text", "answer"), ("rouge1",), prompt=words, response=answer, generate=rows
)
TOKENIZER = word_tokenizer(["word a b"])


def module(spec=CLASSES, batch_size=4, tokenizer=TOKENIZER, model_limit=64, seed=0, **options):
    made = TextDataModule(spec, DataOptions(batch_size, **options), seed)
    made.attach(tokenizer, model_limit)
    return made


def indices(loader):
    return [batch["index"].tolist() for batch in loader]


def test_loaders_of_every_stage():
    data = module()
    data.setup("fit")
    assert sorted(row for rows in indices(data.train_dataloader()) for row in rows) == list(range(13))
    assert indices(data.train_dataloader()) != indices(module(seed=1).train_dataloader())
    assert [indices(loader) for loader in data.val_dataloader()] == [[[2, 4, 1, 3], [0]]], "by length"
    assert [indices(loader) for loader in data.test_dataloader()] == [[[2, 1, 0]]]
    assert (data.validation_names, data.test_names, data.splits.notes) == (("validation",), ("test",), ())


def test_a_stage_encodes_what_it_needs(monkeypatch):
    encoded = []
    monkeypatch.setattr("dataset.batching.module.encode", lambda rows, *_: encoded.append(len(rows)))
    for stage, sizes in (("fit", [13, 5]), ("validate", [5]), ("test", [3]), (None, [13, 5, 3])):
        encoded.clear()
        data = module()
        data.setup(stage)
        data.setup(stage)
        assert encoded == sizes


def test_batches_are_padded_to_their_longest_row():
    data = module(batch_size=1)
    widths = {batch["input_ids"].shape[1] for batch in data.train_dataloader()}
    assert widths == {2, 3, 4, 5, 6}


def test_summaries_come_with_prompts_where_they_are_generated():
    data = module(SUMMARIES, max_token_len=16, max_target_len=4)
    assert (data.limits.max_token_len, data.limits.max_target_len) == (16, 4)
    assert "prompt_ids" not in next(iter(data.train_dataloader()))
    for loader in (*data.val_dataloader(), *data.test_dataloader()):
        batch = next(iter(loader))
        assert batch["target"] == ["a b"] * len(batch["index"])
        assert (batch["prompt_ids"][:, -1] == TOKENIZER("word").input_ids[-1]).all()


def test_scoring_batches_are_the_first_rows_in_file_order_whatever_the_processes():
    data = module()
    assert data.scoring_batch_count == 4
    one = list(data.scoring_batches(3))
    assert [batch["index"].tolist() for batch in one] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    two = [[batch["index"].tolist() for batch in data.scoring_batches(3, rank, 2)] for rank in (0, 1)]
    assert two == [[[0, 1, 2, 3], [8, 9, 10, 11]], [[4, 5, 6, 7]]]
    by_length = [batch["index"].tolist() for batch in data.scoring_batches(99, by_length=True)]
    assert by_length == [[2, 7, 4, 9], [1, 6, 11, 3], [8, 0, 5, 10], [12]]
    other = module(SUMMARIES, max_target_len=3)
    assert next(other.scoring_batches(1, by_length=True))["index"].tolist() == [0, 1, 2, 3], "tokens count, not rows"
    assert [len(batch["index"]) for batch in data.scoring_batches(99)] == [4, 4, 4, 1]
    assert all((batch["weight"] == 1).all() for batch in data.scoring_batches(99))


@pytest.mark.parametrize(("world", "count"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_batches_per_epoch(world, count):
    assert module().train_batches_per_epoch(world) == count


def test_what_is_wrong_with_the_data_shows_before_there_is_a_tokenizer(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        TextDataModule(CLASSES, DataOptions(4, dataset_saved_path=tmp_path / "nowhere"))


def test_lengths_are_checked_when_the_tokenizer_comes():
    with pytest.raises(UserError, match="--max-token-len 65 is more than the model takes"):
        module(max_token_len=65)
    with pytest.raises(ValueError, match="no pad token"):
        module(tokenizer=word_tokenizer(["a"], pad_token=None))


# Under Lightning


def test_fitting_encodes_each_split_once(monkeypatch):
    encoded = []
    monkeypatch.setattr(
        "dataset.batching.module.encode", lambda rows, *given: encoded.append(len(rows)) or encode(rows, *given)
    )
    trainer(limit_val_batches=1.0).fit(Recorder(), module())
    assert encoded == [13, 5]


class Recorder(pl.LightningModule):
    """Notes every batch that it sees: (stage, epoch, batch, rows, weights)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def note(self, stage, batch, number):
        epoch = self.trainer.current_epoch
        self.seen.append((stage, epoch, number, batch["index"].tolist(), batch["weight"].tolist()))

    def training_step(self, batch, batch_idx):
        self.note("train", batch, batch_idx)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.note("validation", batch, batch_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        self.note("test", batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def trained(self):
        return [note[1:4] for note in self.seen if note[0] == "train"]


class StoppedError(Exception):
    pass


class SaveAndStop(pl.Callback):
    """Saves after `batches` training batches, or at the end of that epoch, and ends the run there."""

    def __init__(self, path, batches, epoch_end):
        self.path, self.left, self.epoch_end = path, batches, epoch_end

    def save(self, trainer):
        trainer.save_checkpoint(self.path)
        raise StoppedError

    def on_train_batch_end(self, trainer, *_):
        self.left -= 1
        if self.left == 0 and not self.epoch_end:
            self.save(trainer)

    def on_train_epoch_end(self, trainer, *_):
        if self.left <= 0:
            self.save(trainer)


def trainer(callbacks=(), **options):
    return quiet_trainer(callbacks, **{"max_epochs": 3, **options})


ENDS = {"limit_train_batches": 3}
VALIDATES = {"val_check_interval": 3, "limit_val_batches": 1.0}
STEPS = {"max_steps": 17, "max_epochs": -1}


@pytest.mark.parametrize(
    ("workers", "options", "epoch_end"),
    some_slow(
        [
            *itertools.product((0, 2), ({}, ENDS), (False, True)),
            *((0, VALIDATES, False), (0, VALIDATES, True)),
            (0, STEPS, False),  # from the end of an epoch Lightning itself resumes wrongly with max_steps
        ],
        quick=[(0, ENDS, True), (2, {}, True), (0, STEPS, False)],
    ),
)
def test_lightning_resumes_at_the_very_next_batch(tmp_path, workers, options, epoch_end):
    def data():
        return module(batch_size=2, num_workers=workers)

    whole = Recorder()
    trainer(**options).fit(whole, data())
    assert len(set(map(str, whole.trained()))) == len(whole.trained())
    for batches in range(1, len(whole.trained())) if workers == 0 else (2, 3, 8):
        first, second = Recorder(), Recorder()
        with pytest.raises(StoppedError):
            trainer([SaveAndStop(tmp_path / "x.ckpt", batches, epoch_end)], **options).fit(first, data())
        trainer(**options).fit(second, data(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
        assert first.trained() + second.trained() == whole.trained()


class WritesDown(Recorder):
    """Leaves a file for each process."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_fit_end(self):
        (self.folder / f"fit-{self.global_rank}.json").write_text(json.dumps(self.seen))

    def on_test_end(self):
        (self.folder / f"test-{self.global_rank}.json").write_text(json.dumps(self.seen))


def test_resuming_with_other_batches_is_refused(tmp_path):
    with pytest.raises(StoppedError):
        trainer([SaveAndStop(tmp_path / "x.ckpt", 2, False)]).fit(Recorder(), module(batch_size=2))
    for settings, message in (
        ({"batch_size": 3}, "global batch size 2, this one has 3"),
        ({"seed": 4}, "seed 0, this"),
    ):
        data = module(**{"batch_size": 2, **settings})
        with pytest.raises(UserError, match=message):
            trainer().fit(Recorder(), data, ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_two_processes_share_every_batch(tmp_path):
    settings = {"max_epochs": 2, "limit_val_batches": 1.0}
    alone = Recorder()
    trainer(**settings).fit(alone, module(batch_size=4))
    both = trainer(devices=2, strategy="ddp_fork", **settings)
    both.fit(WritesDown(tmp_path), module(batch_size=2))
    both.test(WritesDown(tmp_path), module(batch_size=2), verbose=False)
    ranks = [json.loads((tmp_path / f"fit-{rank}.json").read_text()) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone.seen)
    for (stage, epoch, number, rows, _), *parts in zip(alone.seen, *ranks, strict=True):
        assert all(part[:3] == [stage, epoch, number] for part in parts)
        real = [index for part in parts for index, weight in zip(part[3], part[4], strict=True) if weight]
        assert sorted(real) == sorted(rows)
    tests = [json.loads((tmp_path / f"test-{rank}.json").read_text()) for rank in (0, 1)]
    assert [[note[3:] for note in seen] for seen in tests] == [[[[2, 0], [1, 1]]], [[[1], [1]]]], "by length"
    validations = [[note[3:] for note in seen if note[0] == "validation"][:2] for seen in ranks]
    assert validations == [[[[2, 1], [1, 1]], [[0], [1]]], [[[4, 3], [1, 1]], [[0], [0]]]], "5 rows, 2 processes"
