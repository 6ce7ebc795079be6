"""Every mistake in a file of rows ends in one line that names the file, and the line or row where it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from dataset import registry
from dataset.reading.source import read_splits
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from tests.mistakes import refusal
from tests.quick import some_slow

SPEC = DatasetSpec("mine", "classification", ("text",), ("accuracy",), labels=("no", "yes"), test=None, path="my/rows")
REGRESSION = replace(SPEC, labels=())
GOOD = '{"text": "a", "label": 0}\n'


def complaint(folder: Path, spec: DatasetSpec = SPEC) -> str:
    """The one line about a folder, the same with and without a cache."""
    line, again = (refusal(read_splits, spec, folder, cache) for cache in (True, False))
    assert line == again
    assert "; " in line
    line.encode()
    return line


def read(folder: Path, name: str, content: bytes | str, spec: DatasetSpec = SPEC) -> list[dict[str, object]]:
    write(folder, name, content)
    return read_splits(spec, folder).train.to_list()


def write(folder: Path, name: str, content: bytes | str) -> None:
    (folder / "validation.jsonl").write_text(GOOD)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("null\n" + GOOD, "line 1 of '{}' is null; each line is one JSON object"),
        (GOOD + "3\n", "line 2 of '{}' is 3; each line"),
        (GOOD + "\n" + '["a", 0]\n', "line 3 of '{}' is [\"a\", 0]; each line"),
        (GOOD + '{"text": "a", "label": 0', "line 2 of '{}' is not JSON (Expecting ',' delimiter at character 25)"),
        (GOOD.encode() + '{"text": "é", "label": 0}'.encode("latin-1"), "line 2 of '{}' is not UTF-8 text; convert"),
        (GOOD.encode("utf-16"), "line 1 of '{}' is not UTF-8 text"),
        ('{"text": "a\0", "label": 0}', "line 1 of '{}' is not JSON (Invalid control character"),
        (f'{{"text": {DEEP}', "line 1 of '{}' is not JSON (maximum recursion depth exceeded"),
        (GOOD + '{"text": "a", "label": 0, "text": "b"}', "line 2 of '{}' is not JSON (key 'text' occurs twice)"),
        (GOOD + '{"text": 1, "label": 0}', "line 2 of '{}' has 1 in column 'text'; it must hold text"),
        (GOOD + '{"text": {"a": "b"}, "label": 0}', "line 2 of '{}' has {\"a\": \"b\"} in column 'text'; it must hold"),
        ('{"text": "\\ud800", "label": 0}', "line 1 of '{}' has \"\\ud800\" in column 'text'"),
        (GOOD + '{"text": "a", "label": "yes"}', "line 2 of '{}' has label \"yes\"; labels are all names, or all"),
        ('{"text": "a", "label": "yes"}\n' + GOOD, "line 2 of '{}' has label 0; labels are all names, or all"),
        (GOOD + '{"text": "a", "label": 1e999}', "row 1 of split 'train' of data set 'mine' in"),
        (GOOD + f'{{"text": "a", "label": {10**30}}}', f"line 2 of '{{}}' has label {10**30}"),
        (GOOD + '{"text": "a", "label": [1]}', "line 2 of '{}' has label [1]"),
        (GOOD + '{"text": "a"}', "has 1 row without a label"),
        ('{"txt": "a", "label": 0}', "'{}' has no column 'text'; did you mean 'txt'?"),
        ('{"a\\nb": "a", "label": 0}', "'{}' has no column 'text'; valid: label"),
        ("\n\n", "{} is empty"),
        ("", "{} is empty"),
    ],
)
def test_jsonl(tmp_path: Path, content: bytes | str, found: str) -> None:
    write(tmp_path, "train.jsonl", content)
    assert found.replace("{}", str(tmp_path / "train.jsonl")) in complaint(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[", "'{}' is not JSON (Expecting value at character 2); give an array of objects"),
        (f"[{GOOD}, null]", "row 1 of '{}' is null; each row is an object"),
        (f"[{GOOD}, {{}}]", "has 1 row without a label"),
        ("[]", "{} is empty"),
        (DEEP, "'{}' is not JSON (maximum recursion depth exceeded"),
        ('["é"]'.encode("latin-1"), "line 1 of '{}' is not UTF-8 text"),
        ("null", "line 1 of '{}' is null"),
        ('{"text": {"a": 1}}', "line 1 of '{}' has {\"a\": 1} in column 'text'"),
        ('{\n"text": "a"}', "line 1 of '{}' is not JSON"),
    ],
)
def test_json(tmp_path: Path, content: bytes | str, found: str) -> None:
    write(tmp_path, "train.json", content)
    assert found.replace("{}", str(tmp_path / "train.json")) in complaint(tmp_path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            "text,label\na,0\nb,1,2\n",
            "row 3 of '{}' (the header is row 1) has 3 columns, and the header has 2: 'b,1,2'; separate columns by",
        ),
        ("text,label\na,0\nb\n", "row 3 of '{}' (the header is row 1) has 1 columns"),
        ("text,label,text\na,0,b\n", "'{}' has 2 columns named 'text'; keep one of them"),
        ("text,label\né,0\n".encode("latin-1"), "line 2 of '{}' is not UTF-8 text; convert the file to UTF-8"),
        ("text,label\na,0\na\0b,0\n", "line 3 of '{}' holds a NUL byte"),
        ("text,labels\na,0\n", "'{}' has no column 'label'; did you mean 'labels'?"),
        ("text,label\n", "{} is empty"),
        ("text,label\na,\n", "has 1 row without a label"),
        ("text,label\na,0\nb,perhaps\n", "has label '0'; labels are 0 to 1"),
    ],
)
def test_csv(tmp_path: Path, content: bytes | str, found: str) -> None:
    write(tmp_path, "train.csv", content)
    assert found.replace("{}", str(tmp_path / "train.csv")) in complaint(tmp_path)


def table(**columns: object) -> pa.Table:
    return pa.table({"text": ["a"], "label": [0], **columns})


def write_parquet(path: Path, content: pa.Table) -> None:
    parquet.write_table(content, path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (table(text=[1]), "column 'text' of split 'train' of data set 'mine' in"),
        (table(text=[b"\xff"]), "holds binary; it must hold text"),
        (table(label=pa.nulls(1)), "has 1 row without a label"),
        (table(label=[{"a": 1}]), "row 0 of split 'train' of data set 'mine' in"),
        (table().rename_columns(["text", "text"]), "has 2 columns named 'text'"),
        (table().slice(0, 0), "is empty"),
        (
            table(
                text=pa.Array.from_buffers(
                    pa.string(), 1, [None, pa.py_buffer(np.int32([0, 1])), pa.py_buffer(b"\xff")]
                )
            ),
            "is damaged or of another kind (Column 0: In chunk 0: Invalid: Invalid UTF8",
        ),
    ],
)
def test_parquet(tmp_path: Path, content: pa.Table, found: str) -> None:
    write(tmp_path, "train.parquet", b"")
    write_parquet(tmp_path / "train.parquet", content)
    line = complaint(tmp_path)
    assert found in line
    assert str(tmp_path) in line


def test_parquet_that_is_cut_short_or_describes_its_columns_wrongly(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_parquet(path, table())
    whole = path.read_bytes()
    write(tmp_path, path.name, whole[:-20])
    assert f"the file '{path}' is damaged" in complaint(tmp_path)
    write_parquet(path, table().replace_schema_metadata({"huggingface": '{"info": {"features": {"text": 1}}}'}))
    assert f"the file '{path}' is damaged" in complaint(tmp_path)


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.parquet"])
def test_what_is_no_file(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, b"")
    path = tmp_path / name
    path.unlink()
    path.mkdir()
    assert f"'{path}' is not a regular file" in complaint(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    assert f"'{path}' is not a regular file" in complaint(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    assert "No such file or directory" in complaint(tmp_path)


def test_a_file_or_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may run as root, which may read everything."""
    write(tmp_path, "train.jsonl", GOOD)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", forbidden)
        assert "Permission denied" in complaint(tmp_path)
    monkeypatch.setattr(Path, "iterdir", forbidden)
    assert f"cannot read --dataset-saved-path '{tmp_path}' (Permission denied)" in complaint(tmp_path)


@pytest.mark.parametrize("folder", ["~nobody-of-this-name/x", "x" * 300, "a\0b"])
def test_folders_that_cannot_be(folder: str) -> None:
    with pytest.raises(UserError, match="--dataset-saved-path"):
        read_splits(SPEC, folder)


def test_shards_of_different_types(tmp_path: Path) -> None:
    write(tmp_path, "train-00000-of-00002.jsonl", GOOD)
    write(tmp_path, "train-00001-of-00002.jsonl", '{"text": "a", "label": "yes"}')
    assert "give all files of a split the same types" in complaint(tmp_path)


# What is right


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", GOOD),
        ("train.jsonl", GOOD.replace("\n", "\r\n")),
        ("train.json", f"[{GOOD}]"),
        ("train.json", GOOD),
        ("train.csv", "text,label\na,0\n"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path, name: str, content: str) -> None:
    assert read(tmp_path, name, b"\xef\xbb\xbf" + content.encode()) == [{"text": "a", "label": 0}]


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    content = '{"text": "a", "label": 0, "x": 1}\n{"text": "b", "label": 1, "x": {"y": ["z"]}}\n'
    assert read(tmp_path, "train.jsonl", content) == [{"text": "a", "label": 0}, {"text": "b", "label": 1}]


def test_csv_texts_are_text_whatever_they_look_like(tmp_path: Path) -> None:
    content = 'label,text\n1,1\n0,2.50\n1,\n0,true\n1,NA\n0,"a\nb, ""c"""\n'
    made = read(tmp_path, "train.csv", content)
    assert [row["text"] for row in made] == ["1", "2.50", "", "true", "NA", 'a\nb, "c"']
    assert [row["label"] for row in made] == [1, 0, 1, 0, 1, 0]


def test_whole_and_real_numbers_are_real_numbers(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": number} for number in [1] * 10_000 + [2.5]]  # more than one batch
    made = read(tmp_path, "train.jsonl", "".join(json.dumps(row) + "\n" for row in rows), REGRESSION)
    assert [row["label"] for row in made] == [1.0] * 10_000 + [2.5]


@pytest.mark.parametrize("suffix", some_slow(["txt", "jsonl", "csv", "parquet"], quick=["txt", "csv"]))
def test_a_large_file_is_converted_in_pieces(tmp_path: Path, suffix: str) -> None:
    """Arrow never holds a third of the rows, and they are those that are read without a cache."""
    texts = [f"{number:07} {'word ' * 10}" for number in range(200_000)]
    path, rows = tmp_path / f"train.{suffix}", pa.table({"text": texts})
    if suffix == "parquet":
        parquet.write_table(rows, path, row_group_size=5_000)
    elif suffix == "csv":
        pa.csv.write_csv(rows, path)
    else:
        lines = texts if suffix == "txt" else [json.dumps({"text": text}) for text in texts]
        path.write_text("".join(f"{line}\n" for line in lines))
    spec = DatasetSpec("mine", "causal_language_modeling", ("text",), ("perplexity",), own=True, place=path)
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        made = read_splits(spec, share=0).train
    finally:
        pa.set_memory_pool(before)
    assert pool.max_memory() < rows.nbytes / 3
    assert made.to_list() == read_splits(spec, share=0, cache=False).train.to_list()


def test_a_line_of_a_large_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_bytes(b"a line\n" * 20_000 + b"\xff\n")
    spec = DatasetSpec("mine", "causal_language_modeling", ("text",), ("perplexity",), own=True, place=tmp_path)
    with pytest.raises(UserError, match=r"line 20001 of '.*train.txt' is not UTF-8 text"):
        read_splits(spec)


@pytest.mark.parametrize("label", ["NaN", "Infinity", '"a"', "null"])
def test_regression_labels_are_finite_numbers(tmp_path: Path, label: str) -> None:
    write(tmp_path, "train.jsonl", f'{{"text": "a", "label": {label}}}')
    assert "labels are real numbers" in complaint(tmp_path, REGRESSION)


# Folders of save_to_disk


def saved(folder: Path) -> Path:
    rows = Dataset.from_list([{"text": "a b c", "label": 0}] * 5)
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(folder)
    return folder


def change(name: str, edit: Callable[[dict], object]) -> Callable[[Path], None]:
    """Edit one of the JSON files."""

    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        edit(document)
        (folder / name).write_text(json.dumps(document))

    return damage


def put(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


ARROW = "train/data-00000-of-00001.arrow"
STATE, INFO, SPLITS = "train/state.json", "train/dataset_info.json", "dataset_dict.json"


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (put(SPLITS, b"{"), f"the list of splits '{{}}/{SPLITS}' is not valid JSON"),
        (put(SPLITS, b"[]"), f"the list of splits '{{}}/{SPLITS}' holds a list"),
        (put(SPLITS, b"{}"), f"'{{}}/{SPLITS}' lists no splits"),
        (put(SPLITS, b'{"splits": "train"}'), f"'{{}}/{SPLITS}' lists no splits"),
        (put(SPLITS, b'{"splits": ["../train"]}'), f"'{{}}/{SPLITS}' lists no splits"),
        (put(SPLITS, b'{"splits": []}'), f"'{{}}/{SPLITS}' lists no splits"),
        (put(SPLITS, b'{"splits": ["train", "test"]}'), "no split 'validation'"),
        (put(STATE, b"\xff"), f"'{{}}/{STATE}' is not UTF-8 text"),
        (put(STATE, b"null"), f"'{{}}/{STATE}' holds a NoneType"),
        (put(STATE, DEEP.encode()), f"'{{}}/{STATE}' is not valid JSON"),
        (change(STATE, lambda state: state.pop("_data_files")), f"'{{}}/{STATE}' lists no data files"),
        (change(STATE, lambda state: state.update(_data_files=[{"filename": "../x"}])), "lists no data files"),
        (change(STATE, lambda state: state.update(_data_files=[1])), "lists no data files"),
        (change(STATE, lambda state: state.update(_data_files=[])), "train is empty"),
        (change(STATE, lambda state: state.update(_format_type="zarr")), "the folder '{}/train' is damaged"),
        (change(STATE, lambda state: state.pop("_fingerprint")), "the folder '{}/train' is damaged"),
        (put(INFO, b"{"), f"'{{}}/{INFO}' is not valid JSON"),
        (change(INFO, lambda info: info.update(features=[1])), "the folder '{}/train' is damaged"),
        (change(INFO, lambda info: info["features"].pop("text")), "the folder '{}/train' is damaged"),
        (
            change(INFO, lambda info: info["features"]["text"].update(_type="Nothing")),
            "the folder '{}/train' is damaged",
        ),
        (put(ARROW, b""), "the folder '{}/train' is damaged"),
        (put(ARROW, b"garbage" * 50), "the folder '{}/train'"),
        (lambda folder: (folder / ARROW).write_bytes((folder / ARROW).read_bytes()[:-200]), "the folder '{}/train'"),
        (lambda folder: (folder / ARROW).unlink(), "cannot read the folder '{}/train' (No such file"),
        (lambda folder: (folder / STATE).unlink(), f"cannot read the state of the rows '{{}}/{STATE}' (No such file"),
        (lambda folder: ((folder / INFO).unlink(), (folder / INFO).mkdir()), f"'{{}}/{INFO}' (Is a directory)"),
    ],
)
def test_damaged_folders_of_save_to_disk(tmp_path: Path, damage: Callable[[Path], object], found: str) -> None:
    folder = saved(tmp_path / "data")
    damage(folder)
    assert found.replace("{}", str(folder)) in complaint(folder)


def test_offsets_that_point_outside_of_a_column(tmp_path: Path) -> None:
    """To read such a text ends the whole process."""
    folder = saved(tmp_path / "data")
    content = (folder / ARROW).read_bytes()
    offsets = np.arange(0, 30, 5, dtype=np.int32).tobytes()
    assert content.count(offsets) == 1
    wrong = np.asarray([0, 5, 2**30, 15, 20, 25], dtype=np.int32).tobytes()
    (folder / ARROW).write_bytes(content.replace(offsets, wrong))
    assert f"the folder '{folder / 'train'}' is damaged" in complaint(folder)


def test_the_format_of_a_saved_folder_does_not_matter(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"text": "a b c", "label": 0}] * 5).with_format("numpy", columns=["label"])
    DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "data")
    assert read_splits(SPEC, tmp_path / "data").train[0] == {"text": "a b c", "label": 0}


# Foreign code, and the hub

SCRIPT = "import pathlib\npathlib.Path({!r}).touch()\n"


def test_a_script_in_a_folder_of_rows_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proof, folder = tmp_path / "ran", tmp_path / "my" / "rows"
    folder.mkdir(parents=True)
    for name in ("rows.py", "data.py", "__init__.py"):
        (folder / name).write_text(SCRIPT.format(str(proof)))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'mine' could not be fetched from the hub \(.*"):
        read_splits(SPEC)  # `datasets` takes a folder here for the hub's repository of that name
    assert "holds no data" in complaint(folder)
    write(folder, "train.jsonl", GOOD)
    assert len(read_splits(SPEC, folder).train) == 1
    assert not proof.exists()


@pytest.mark.parametrize(
    "error",
    [
        ValueError("BuilderConfig 'x' not found. Available: ['y']\nmore"),
        ConnectionError("Couldn't reach 'my/rows' on the Hub"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'my/rows' doesn't exist on the Hub"),
        RuntimeError(""),
    ],
)
def test_the_hub_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **options: object) -> None:
        assert "trust_remote_code" not in options
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fails)
    line = refusal(read_splits, replace(SPEC, config="x"))
    assert f"'mine' could not be fetched from the hub ({(str(error).splitlines() or ['RuntimeError'])[0]}" in line
    assert "give --dataset-saved-path" in line


def test_rows_of_the_hub_without_a_split_or_column(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Dataset.from_list([{"text": "a", "lable": 0}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: DatasetDict({"train": rows}))
    with pytest.raises(UserError, match="split 'train' of data set 'mine' has no column 'label'; did you mean 'lable'"):
        read_splits(SPEC)
    with pytest.raises(UserError, match="data set 'mine' has no split 'trian'; did you mean 'train'"):
        read_splits(replace(SPEC, train="trian"))


def test_a_damaged_copy_of_the_hubs_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(np.int32([0, 1])), pa.py_buffer(b"\xff")])
    rows = Dataset(table(text=text))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: DatasetDict({"train": rows, "validation": rows}))
    with pytest.raises(UserError, match="copy in the cache of data set 'mine' is damaged"):
        read_splits(SPEC)


def test_every_entry_names_its_label_column() -> None:
    for spec in registry.specs().values():
        assert (spec.label_column is None) == (spec.task != "classification" and spec.choices is None)
