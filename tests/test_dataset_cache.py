"""The cache depends on the content of rows, tokenizer and settings alone. A damaged entry is made again."""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import operator
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import datasets
import pytest
from datasets import Dataset, concatenate_datasets
from transformers import ByT5Tokenizer, CTRLTokenizer

from dataset.batching.module import TextDataModule
from dataset.encoding.encode import Lengths, cache_key
from dataset.encoding.identity import rows_digest, tokenizer_digest
from dataset.reading.cache import cached
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from options.data import DataOptions
from tests.tiny import word_tokenizer
from tests.world import ROOT, write_jsonl

WORDS = "a b c d e f g h i j"
A, B, C, D = range(6, 10)
TOKENIZER = word_tokenizer([WORDS])
ONE = DatasetSpec(
    "one", "classification", ("text",), ("accuracy",), labels=("no", "yes"), validation=("train",), test=None
)
ANSWER = DatasetSpec(
    "answer",
    "causal_language_modeling",
    ("prompt", "response"),
    ("perplexity",),
    prompt=operator.itemgetter("prompt"),
    response=operator.itemgetter("response"),
    validation=("train",),
    test=None,
)
ROWS = [{"prompt": "a b", "response": "c", "text": "a b", "label": 0}]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder / "heterolora"


def ids(spec: DatasetSpec, folder: Path, tokenizer=TOKENIZER, **options) -> list[list[int]]:
    """The token ids that a run trains on, without the tokens that the tokenizer puts around a text."""
    data = TextDataModule(spec, DataOptions(1, dataset_saved_path=folder, **options))
    data.attach(tokenizer, 64)
    return [[token for token in row if token > 5] for row in data.encoded(data.splits.train)["input_ids"]]


def folder_of(folder: Path, rows: list[dict[str, object]] = ROWS) -> Path:
    write_jsonl(folder / "train.jsonl", rows)
    return folder


def files(cache: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in cache.glob("*/rows.arrow")}


def imported(monkeypatch: pytest.MonkeyPatch, folder: Path, **programs: str) -> ModuleType:
    """Write the modules and imports the last one anew."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name, program in programs.items():
        (folder / f"{name}.py").write_text(program)
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module(name)


class TestWhatIsNotTheKey:
    """Each of these once trained on the rows of another data set."""

    def test_the_file_of_the_entry(self, tmp_path: Path) -> None:
        """Two data sets whose functions are in one file, on the same rows."""
        data = folder_of(tmp_path / "data")
        first = replace(ANSWER, prompt=lambda row: row["prompt"])
        second = replace(ANSWER, prompt=lambda row: f"d {row['prompt']}")
        assert ids(first, data) == [[A, B, C]]
        assert ids(second, data) == [[D, A, B, C]]

    def test_the_function_of_a_partial(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data, program = (
            folder_of(tmp_path / "data"),
            "def template(end, row):\n    return {head!r} + row['prompt'] + end\n",
        )
        for head, end, expected in (("c ", "", [C, A, B, C]), ("d ", "", [D, A, B, C]), ("d ", " d", [D, A, B, D, C])):
            module = imported(monkeypatch, tmp_path, partial_entry=program.format(head=head))
            assert ids(replace(ANSWER, prompt=functools.partial(module.template, end)), data) == [expected]

    def test_the_file_that_imports_a_template(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = folder_of(tmp_path / "data")
        program = "import imported_template\ndef prompt(row):\n    return imported_template.HEAD + row['prompt']\n"
        for head, first in (("c ", C), ("d ", D)):
            template = f"HEAD = {head!r}\n"
            module = imported(monkeypatch, tmp_path, imported_template=template, importing_entry=program)
            assert ids(replace(ANSWER, prompt=module.prompt), data) == [[first, A, B, C]]

    def test_the_time_and_size_of_a_file(self, tmp_path: Path) -> None:
        data = tmp_path / "data"
        for text, expected in (("a b", [A, B]), ("c d", [C, D])):
            folder_of(data, [{"text": text, "label": 0}])
            os.utime(data / "train.jsonl", (1, 1))
            assert ids(ONE, data) == [expected]

    def test_the_fingerprint_of_a_saved_folder(self, tmp_path: Path) -> None:
        data, state = tmp_path / "data", {}
        for text, expected in (("a b", [A, B]), ("c d", [C, D])):
            Dataset.from_list([{"text": text, "label": 0}] * 2).save_to_disk(data)
            state = state or json.loads((data / "state.json").read_text())
            fingerprint = {"_fingerprint": state["_fingerprint"]}
            (data / "state.json").write_text(json.dumps(json.loads((data / "state.json").read_text()) | fingerprint))
            assert ids(replace(ONE, validation=()), data) == [expected]

    def test_path_time_and_name(self, tmp_path: Path, cache: Path) -> None:
        """The same content is encoded once, wherever it is."""
        ids(ONE, folder_of(tmp_path / "first"))
        once = files(cache)
        assert len(once) == 2, "the rows of the file, and their ids"
        os.utime(folder_of(tmp_path / "second") / "train.jsonl", (1, 1))
        ids(replace(ONE, name="other"), tmp_path / "second")
        assert files(cache) == once
        Dataset.from_list(ROWS * 2).save_to_disk(tmp_path / "saved")
        ids(replace(ONE, validation=()), tmp_path / "saved")
        assert files(cache) == once, "rows that come from an Arrow file"


def test_encoded_once(tmp_path: Path, cache: Path) -> None:
    data, tokenizer = folder_of(tmp_path / "data"), word_tokenizer([WORDS])
    first = ids(ONE, data, tokenizer)
    once = files(cache)
    assert len(once) == 2
    tokenizer("a", truncation=True, max_length=1)  # use changes a tokenizer's state
    assert ids(ONE, data, word_tokenizer([WORDS])) == first
    assert ids(ONE, data, tokenizer) == first
    assert ids(ONE, data, tokenizer, disable_dataset_cache=True) == first
    assert files(cache) == once


LIMITS = Lengths(9, 0)


def key(rows=ROWS, spec=ANSWER, tokenizer=TOKENIZER, limits=LIMITS) -> str:
    return cache_key(rows_digest(Dataset.from_list(rows), spec), spec, tokenizer_digest(tokenizer), limits)


@pytest.mark.parametrize(
    "other",
    [
        {"rows": [{**ROWS[0], "prompt": "b b"}]},
        {"rows": [{**ROWS[0], "prompt": "a bc", "response": ""}]},
        {"rows": [{**ROWS[0], "prompt": "c", "response": "a b"}]},
        {"rows": ROWS * 2},
        {"spec": replace(ANSWER, cue=" i")},
        {"spec": replace(ANSWER, task="summarization", metrics=("rouge1",))},
        {"tokenizer": word_tokenizer(["x", WORDS])},
        {"tokenizer": word_tokenizer([WORDS], "encoder")},
        {"tokenizer": word_tokenizer([WORDS], truncation_side="left")},
        {"tokenizer": word_tokenizer([WORDS], eos_token="<sep>")},
        {"tokenizer": word_tokenizer([WORDS], model_input_names=["input_ids", "token_type_ids"])},
        {"limits": Lengths(8, 0)},
        {"limits": Lengths(9, 1)},
    ],
)
def test_what_the_key_depends_on(other: dict[str, object]) -> None:
    assert key() == key(tokenizer=word_tokenizer([WORDS]))
    assert key(**other) != key()


def test_labels_are_part_of_the_key() -> None:
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    swapped = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    real = [{**row, "label": float(row["label"])} for row in rows]
    assert len({key(labelled, ONE) for labelled in (rows, swapped, real)}) == 3


def test_how_the_rows_are_stored_is_not_part_of_the_key() -> None:
    rows = [{"text": f"a {index}", "label": index % 2} for index in range(30)]
    whole = Dataset.from_list(rows)
    parts = concatenate_datasets([Dataset.from_list(rows[:7]), Dataset.from_list(rows[7:])])
    chosen = concatenate_datasets([Dataset.from_list([{"text": "z", "label": 0}]), whole]).select(range(1, 31))
    large = whole.cast_column("text", datasets.Value("large_string"))
    assert len({rows_digest(stored, ONE) for stored in (whole, parts, chosen, large)}) == 1


def test_slow_tokenizers(tmp_path: Path) -> None:
    made = []
    for number, merges in enumerate(("a b", "a b", "b c")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "bc": 3, "<unk>": 4}))
        (folder / "merges.txt").write_text(f"#version\n{merges}\n")
        made.append(CTRLTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")))
    first, same, other = map(tokenizer_digest, made)
    assert first == same != other
    assert tokenizer_digest(ByT5Tokenizer(extra_ids=1)) != tokenizer_digest(ByT5Tokenizer(extra_ids=2))


@pytest.mark.slow
def test_the_key_is_the_same_in_another_process() -> None:
    program = "from tests.test_dataset_cache import key; print(key())"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        made = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert made.stdout.strip() == key()


# Damage


def flip(path: Path) -> None:
    """Change one bit in the middle of the data of an Arrow file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def into_a_file(path: Path) -> None:
    path.unlink()
    (path.parent / "digest.txt").unlink()
    path.parent.rmdir()
    path.parent.write_text("")


DAMAGE = {
    "bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "garbage": lambda path: path.write_bytes(os.urandom(500)),
    "missing rows": Path.unlink,
    "missing digest": lambda path: (path.parent / "digest.txt").unlink(),
    "wrong digest": lambda path: (path.parent / "digest.txt").write_bytes(b"\xff" * 40),
    "folder for a file": lambda path: (path.unlink(), path.mkdir()),
    "file for a folder": into_a_file,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, caplog, damage) -> None:
    data = folder_of(tmp_path / "data", [{"text": f"{word} b", "label": 0} for word in "acd" * 50])
    first, once = ids(ONE, data), files(cache)
    assert len(once) == 2
    for path in once:
        damage(path)
    assert ids(ONE, data) == first
    assert [record.getMessage().split(" is ", 1)[1] for record in caplog.records] == ["damaged and is made again"] * 2
    assert set(files(cache)) == set(once)
    assert ids(ONE, data) == first
    assert len(caplog.records) == 2, "it is intact now"
    assert not list(cache.glob(".*"))


# Several processes


def table(word: str, path: Path) -> None:
    Dataset.from_list([{"text": word}]).map(lambda row: row, cache_file_name=str(path), load_from_cache_file=False)


def test_the_slower_of_two_processes_uses_what_the_faster_one_made(cache: Path) -> None:
    def slowly(path: Path) -> None:
        cached("key", functools.partial(table, "faster"))
        table("slower", path)

    assert cached("key", slowly)["text"][:] == ["faster"]
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_a_process_that_finds_damage_leaves_what_another_has_made_meanwhile(cache: Path) -> None:
    cached("key", functools.partial(table, "damaged"))
    flip(cache / "key" / "rows.arrow")

    def slowly(path: Path) -> None:
        cached("key", functools.partial(table, "faster"))
        table("slower", path)

    assert cached("key", slowly)["text"][:] == ["faster"]


def test_many_processes_at_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.SimpleQueue()

    def work() -> None:
        def slowly(path: Path) -> None:
            barrier.wait(60)
            table("a", path)

        results.put(cached("key", slowly)["text"][:])

    processes = [context.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    assert [results.get() for _ in processes] == [["a"]] * 4
    for process in processes:
        process.join()
    assert [path.name for path in cache.iterdir()] == ["key"]


def test_folders_of_killed_processes_are_removed(cache: Path) -> None:
    old, recent = (cache / f".key.{name}.tmp" for name in ("old", "recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
        (folder / "rows.arrow").write_text("")
    day_before = time.time() - 25 * 3600
    os.utime(old, (day_before, day_before))
    cached("key", functools.partial(table, "a"))
    assert (old.exists(), recent.exists()) == (False, True)


def test_a_folder_that_its_process_renames_meanwhile(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / ".key.renamed.tmp").symlink_to("nowhere")  # it is listed, and is not there when it is looked at
    assert cached("key", functools.partial(table, "a"))["text"][:] == ["a"]


def test_a_failure_leaves_nothing(cache: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise UserError("found", "expected")

    with pytest.raises(UserError, match="found; expected"):
        cached("key", fails)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    data = folder_of(tmp_path / "data")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file")
    with pytest.raises(
        UserError,
        match=r"cannot be written \(.*\); make room, set HF_HOME to another folder, or give --disable-dataset-cache",
    ):
        ids(ONE, data)
    assert ids(ONE, data, disable_dataset_cache=True) == [[A, B]]


# Functions of an entry


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": lambda row: row["prompt"].split(":")[1]}, r"'prompt' of .* fails for row 1 \(IndexError: list"),
        ({"response": lambda row: None}, "'response' of data set 'answer' returns None for row 0; it must return text"),
    ],
)
def test_functions_that_fail(tmp_path: Path, options: dict[str, object], message: str) -> None:
    rows = [{"prompt": "a: b", "response": "c"}, {"prompt": "a", "response": "c"}]
    data = folder_of(tmp_path / "data", rows)
    with pytest.raises(UserError, match=message):
        TextDataModule(replace(ANSWER, **options), DataOptions(1, dataset_saved_path=data))


def test_a_function_that_returns_one_text_and_then_two(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "data", [{"text": "a", "label": 0}, {"text": "a b", "label": 0}])
    spec = replace(ONE, texts=lambda row: tuple(row["text"].split()))
    with pytest.raises(UserError, match=r"'texts' .* returns \('a', 'b'\) for row 1; it must return the same number"):
        TextDataModule(spec, DataOptions(1, dataset_saved_path=data))
