"""`--streaming`: training rows that are read while the run trains on them, and that a resumed run continues exactly."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from dataset.batching.module import TextDataModule
from dataset.reading.own import describe
from heterolora.common.errors import UserError
from options.data import DataOptions, OwnDataOptions
from tests.quick import some_slow
from tests.tiny import word_tokenizer
from tests.together import run_commands, together
from tests.world import World, metrics_of, run, same_weights, sentences, write_jsonl

FILES, ROWS, MEASURED, BUFFER = 5, 11, 6, 16


def folder_of_files(folder: Path, suffix: str = ".jsonl") -> Path:
    """Files of any name, and a folder `validation`. Each training row has a word of its own."""
    made = sentences(FILES * ROWS, seed=1)
    for number in range(FILES):
        rows = [
            {"text": f"{row['sentence']} row{number * ROWS + place}", "label": ("bad", "good")[int(str(row["label"]))]}
            for place, row in enumerate(made[number * ROWS : (number + 1) * ROWS])
        ]
        write(folder / f"part [{number}]{suffix}", rows)
    write(folder / "validation" / f"rows{suffix}", [{"text": "a good film", "label": "good"}] * MEASURED)
    return folder


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_jsonl(path, rows)


WORDS = [f"row{number}" for number in range(FILES * ROWS)]
TOKENIZER = word_tokenizer(["a good film great fine bad poor dull play song book meal", *WORDS])
IDS = {TOKENIZER.convert_tokens_to_ids(word): number for number, word in enumerate(WORDS)}


def loader(folder: Path, rank: int = 0, world: int = 1, length: int = 1000, **options: Any):
    """The loader of a process. A batch becomes the numbers of its rows by `rows_of`."""
    own = OwnDataOptions(labels="bad,good")
    given = DataOptions(**{"batch_size": 4, "streaming": True, "shuffle_buffer": BUFFER, **options})
    spec, _ = describe(str(folder), own, None, cache=False, buffer=given.buffer)
    data = TextDataModule(spec, given, seed=3, streamed=length)
    data.attach(TOKENIZER, 64)
    device = SimpleNamespace(type="cpu")
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world, accumulate_grad_batches=1, strategy=SimpleNamespace(root_device=device)
    )
    return data.train_dataloader()


def rows_of(batch) -> list[int]:
    return [next(IDS[token] for token in row if token in IDS) for row in batch["input_ids"].tolist()]


def rows(batches, count: int) -> list[int]:
    """The first rows that a loader gives, in its order."""
    found: list[int] = []
    for batch in batches:
        found += rows_of(batch)
        if len(found) >= count:
            break
    return found


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_row_comes_once_before_any_comes_again(tmp_path: Path, suffix: str, workers: int) -> None:
    every = FILES * ROWS
    batches = loader(folder_of_files(tmp_path, suffix), num_workers=workers)
    found = rows(batches, 3 * every)
    assert max(Counter(found[:every]).values()) <= 1 + (workers > 0), "workers may begin again at different times"
    assert {*found} == {*range(every)}
    assert found[:every] != found[every : 2 * every]
    assert found[:BUFFER] != sorted(found[:BUFFER])


def test_the_order_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folder = folder_of_files(tmp_path)
    assert rows(loader(folder), 80) == rows(loader(folder), 80)


@pytest.mark.parametrize("world", [2, 5])
def test_processes_share_the_rows(tmp_path: Path, world: int) -> None:
    folder = folder_of_files(tmp_path)
    shares = [rows(loader(folder, rank, world), 1) for rank in range(world)]
    assert len({*map(tuple, shares)}) == world
    each = [{*rows(loader(folder, rank, world, batch_size=1), -(-FILES * ROWS // world) - 1)} for rank in range(world)]
    assert sum(map(len, each)) == len(set.union(*each)), "no row is in two shares"


@pytest.mark.parametrize("workers", some_slow([0, 2], quick=[0]))
def test_a_loader_goes_on_at_the_same_row(tmp_path: Path, workers: int) -> None:
    folder = folder_of_files(tmp_path)
    whole = [rows_of(batch) for batch in islice(loader(folder, num_workers=workers), 40)]
    for taken, more in ((1, 2), (4, 1), (7, 12), (23, 9)):  # a resumed run may be interrupted again
        begun, state = [], None
        for count in (taken, more, 40 - taken - more):
            batches = loader(folder, num_workers=workers)
            if state is not None:
                batches.load_state_dict(state)
            begun += [rows_of(batch) for batch in islice(batches, count)]
            state = batches.state_dict()
        assert begun == whole


def test_a_run_is_one_epoch_and_a_longer_one_goes_on(tmp_path: Path) -> None:
    folder = folder_of_files(tmp_path)
    ended, longer = loader(folder, length=6), loader(folder, length=20)
    begun = [rows_of(batch) for batch in ended]
    assert len(begun) == len(ended) == 6
    longer.load_state_dict(ended.state_dict())
    following = [rows_of(batch) for batch in islice(longer, 3)]
    assert begun + following == [rows_of(batch) for batch in islice(loader(folder), 9)]


def test_another_stream_is_refused(tmp_path: Path) -> None:
    folder = folder_of_files(tmp_path)
    state = loader(folder).state_dict()
    for options, message in (({"batch_size": 2}, "batch size 4"), ({"num_workers": 2}, "workers 1, this one has 2")):
        with pytest.raises(UserError, match=message):
            loader(folder, **options).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_row_ends_the_run_in_one_line(tmp_path: Path, workers: int) -> None:
    folder = folder_of_files(tmp_path)
    write(folder / "part [9].jsonl", [{"text": "a good film", "label": "odd"}] * 3)
    with pytest.raises(UserError, match="has label 'odd'"):
        rows(loader(folder, num_workers=workers), 200)


def test_more_processes_than_rows(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", [{"text": "a good film", "label": "good"}])
    write(tmp_path / "validation.jsonl", [{"text": "a good film", "label": "good"}])
    with pytest.raises(UserError, match="has no rows"):
        rows(loader(tmp_path, 1, 2), 1)


# Commands

STEPS = ("--max-epochs", -1, "--max-steps", 12, "--streaming", "--shuffle-buffer", BUFFER, "--batch-size", 4)


def training(world: World, folder: Path, runs: Path, *more: object) -> list[object]:
    base = ("train", "--load", world.opt, "--lora-config", world.lora, "--project-dir", runs)
    return [*base, "--dataset", folder, *STEPS, "--val-check-interval", 4, *more]


@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("--num-workers", 2, "--accumulate-grad-batches", 2), marks=pytest.mark.slow)],
    ids=["plain", "workers"],
)
def test_a_resumed_run_is_exact(world: World, tmp_path: Path, more: tuple[object, ...]) -> None:
    folder, runs = folder_of_files(tmp_path / "data"), tmp_path / "runs"
    assert run(*training(world, folder, runs, "--project", "whole", *more)) == 0
    assert run(*training(world, folder, runs, "--project", "cut", "--stop-after", 5, *more)) == 0
    last = Path("checkpoints") / "last.ckpt"
    assert not same_weights(runs / "whole" / last, runs / "cut" / last)
    assert run("train", "--resume-training", "--load", runs / "cut" / last) == 0
    assert same_weights(runs / "whole" / last, runs / "cut" / last)
    assert metrics_of(runs / "whole") == metrics_of(runs / "cut")
    assert "training" not in json.loads((runs / "whole" / "metrics.json").read_text())["rows"], "a stream has no end"
    assert run("test", "--load", runs / "cut" / last, "--project-dir", tmp_path / "tests") == 0


def test_two_processes_resume_exactly(world: World, tmp_path: Path) -> None:
    folder, runs = folder_of_files(tmp_path / "data"), tmp_path / "runs"
    devices = ("--num-devices", 2, "--strategy", "ddp")
    last = runs / "cut" / "checkpoints" / "last.ckpt"
    commands = [
        training(world, folder, runs, "--project", "whole", *devices),
        training(world, folder, runs, "--project", "cut", "--stop-after", 5, *devices),
        ["train", "--resume-training", "--load", last],
    ]
    together(2, run_commands, commands)
    assert same_weights(runs / "whole" / "checkpoints" / "last.ckpt", last)


def test_plain_text_is_packed(world: World, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": row["sentence"]} for row in sentences(60, seed=1)])
    write_jsonl(tmp_path / "validation.jsonl", [{"text": row["sentence"]} for row in sentences(9, seed=2)])
    assert run(*training(world, tmp_path, tmp_path / "runs", "--max-token-len", 16)) == 0


@pytest.mark.parametrize(
    "command",
    [("imp-test",), ("train-dyrealloc", "--imp-limit-test-batches", 2), ("train", "--learning-rate", "auto")],
    ids=lambda command: command[0],
)
def test_what_reads_rows_besides_training(world: World, tmp_path: Path, command: tuple[object, ...]) -> None:
    _, *options = training(world, folder_of_files(tmp_path / "data"), tmp_path / "runs")
    assert run(command[0], *options, *command[1:]) == 0


@pytest.mark.parametrize(
    ("data", "more", "found"),
    [
        ("data", ("--max-steps", -1), "--streaming needs --max-steps"),
        ("data", ("--max-epochs", 2), "--streaming cannot be used with --max-epochs"),
        ("data", ("--limit-train-batches", 2), "--streaming cannot be used with --limit-train-batches"),
        ("data", ("--cache-frozen-prefix",), "--streaming cannot be used with --cache-frozen-prefix"),
        ("toy_nli", (), "--streaming cannot read data set 'toy_nli'"),
        ("parts", (), "--streaming needs a validation split"),
        ("nothing", (), "--streaming finds no rows"),
        ("mixed", (), "finds both parquet and jsonl files"),
        ("broken", (), "is damaged or of another kind"),
    ],
)
def test_what_cannot_be_streamed(
    capfd, world: World, tmp_path: Path, data: str, more: tuple[object, ...], found: str
) -> None:
    rows_of_file: list[dict[str, object]] = [{"text": "a good film", "label": "good"}] * 3
    folder_of_files(tmp_path / "data")
    write(tmp_path / "parts" / "one.jsonl", [{"text": "a good film"}] * 3)
    (tmp_path / "nothing").mkdir()
    folder_of_files(folder_of_files(tmp_path / "mixed"), ".parquet")
    write(tmp_path / "broken" / "validation.jsonl", rows_of_file)
    (tmp_path / "broken" / "rows.jsonl").write_text('{"text": "a good film", "label"')
    place = data if data == "toy_nli" else tmp_path / data
    assert run(*training(world, place, tmp_path / "runs"), *more) == 2
    error = capfd.readouterr().err.strip()
    assert error.startswith("error: ")
    assert "\n" not in error
    assert found in error
