"""Own data as people have them: capitals, semicolons, missing cells, test rows without labels, tool calls."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dataset.encoding.chat import encode_chat
from dataset.reading.source import read_splits
from heterolora.common.errors import UserError
from tests.test_own_data import TALK, TEMPLATE, chat_tokenizer, described, write
from tests.world import World, run, sentences, write_jsonl

CSV = {"text_columns": "review", "label_column": "stars"}


@pytest.mark.parametrize(
    ("name", "content", "own", "message"),
    [
        ("a.csv", "", CSV, "a.csv is empty; give it at least one row"),
        ("a.csv", "", {}, "a.csv is empty"),
        ("a.jsonl", "", {}, "a.jsonl is empty"),
        ("a.jsonl", "\n\n", {}, "a.jsonl is empty"),
        ("a.csv", "review;stars\nx, y;1\n", CSV, "row 2 of '.*' (the header is row 1) has 2 columns, and "
         "the header has 1: 'x, y;1'; separate columns by a comma"),
        ("a.csv", "review;stars\nx;1\n", {}, "one column, 'review;stars'; separate columns by a comma, not by ';'"),
        ("a.tsv", "review,stars\nx,1\n", {}, "one column, 'review,stars'; separate columns by a tab, not by ','"),
        ("a.csv", "text,label\n", {}, "a.csv is empty; give it at least one row"),
        ("a.csv", "review,stars\na,1\nb\n", CSV, "(the header is row 1) has 1 columns, and the header has 2: 'b'"),
        ("a.tsv", "review\tstars\na\tb\t1\n", CSV, "has 3 columns, and the header has 2: .*separate columns by a tab"),
        ("a.csv", "review,stars\na,1\nb,\nc,5\n", CSV, "1 row without a label, row 1 first; .*the labels are 1, 5"),
        ("a.csv", "review,stars\na,12345678901234567890123\nb,2\n", CSV, "the number 1.23457e+22, whose digits"),
        ("a.jsonl", '{"review": "a", "stars": 12345678901234567890123}\n', CSV, "all numbers below 2^63"),
    ],
)  # fmt: skip
def test_the_line_for_a_file(tmp_path: Path, name: str, content: str, own: dict[str, str], message: str) -> None:
    (tmp_path / name).write_text(content)
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(UserError, match=pattern):
        read_splits(described(tmp_path / name, **own)[0], cache=False)


def test_a_column_is_not_both_text_and_label(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.csv")
    for names in (
        {"text_columns": "text"},
        {"text_columns": "text", "regression": True},
        {"text_columns": "label,label"},
    ):
        with pytest.raises(UserError, match="is given twice"):
            described(path, label_column="text", **names)


def test_a_name_that_is_like_no_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("torch\n")
    with pytest.raises(UserError, match=r"sales.csv is not there; give a file of one of the kinds"):
        described(tmp_path / "sales.csv")


def test_a_copy_of_a_repository_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": f"row {index}", "label": index % 2} for index in range(10)]
    for split in ("train", "validation"):
        write(tmp_path / "data", f"{split}-00000-of-00001.parquet", rows)
    (tmp_path / "README.md").write_text("a card")
    assert list(read_splits(described(tmp_path)[0], cache=False).validation) == ["validation"]


def test_an_empty_shard(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.jsonl").write_text("")
    write(tmp_path, "train-00001-of-00002.jsonl")
    assert described(tmp_path)[0].labels == ("1", "2", "5")


def test_columns_of_categories(tmp_path: Path) -> None:
    """As pandas writes them to parquet."""
    columns = {"text": ["a", "b", "c"], "label": ["yes", "no", "yes"]}
    table = pa.table({name: pa.array(values).dictionary_encode() for name, values in columns.items()})
    parquet.write_table(table, tmp_path / "mine.parquet")
    spec, _ = described(tmp_path / "mine.parquet")
    assert (spec.columns, spec.labels) == (("text",), ("no", "yes"))
    assert read_splits(spec, cache=False, share=0.0).test["test"]["label"][:] == [1, 0, 1]


def test_a_test_split_without_labels_is_not_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"row {index}", "label": index % 2} for index in range(10)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a"}])
    splits = read_splits(described(tmp_path)[0], cache=False)
    assert splits.test is splits.validation
    assert splits.notes[0] == "split 'test' has no column 'label' and is not read"


HIDDEN = {
    "test.csv": "text,label\na,\nb,\n",
    "test.jsonl": '{"text": "a", "label": -1}\n{"text": "b", "label": null}\n',
    "test.json": '[{"text": "a", "label": "-1"}, {"text": "b", "label": ""}]',
}


@pytest.mark.parametrize("regression", [True, False])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_test_split_with_hidden_labels_is_not_read(tmp_path: Path, name: str, regression: bool) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"row {index}", "label": index % 2} for index in range(10)])
    (tmp_path / name).write_text(HIDDEN[name])
    splits = read_splits(described(tmp_path, regression=regression)[0], cache=False)
    assert splits.test is splits.validation
    assert splits.notes[0] == "split 'test' has no labels in column 'label' and is not read"


def test_hidden_labels_of_multiple_choice(tmp_path: Path) -> None:
    rows = [{"q": f"which {index} ?", "options": ["a", "b"], "label": str(index % 2)} for index in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [{**row, "label": ""} for row in rows])
    splits = read_splits(described(tmp_path, prompt_column="q", choices_column="options")[0], cache=False)
    assert splits.test is splits.validation


def test_some_test_rows_without_a_label_are_a_mistake(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"row {index}", "label": index % 2} for index in range(10)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": None}, {"text": "b", "label": 1}])
    with pytest.raises(UserError, match=r"split 'test' of data set .* has 1 row without a label, row 0 first"):
        read_splits(described(tmp_path)[0], cache=False)


def test_minus_one_may_be_a_class(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": f"row {index}", "label": index % 3 - 1} for index in range(9)])
    write_jsonl(tmp_path / "test.jsonl", [{"text": "a", "label": -1}])
    assert read_splits(described(tmp_path)[0], cache=False).test["test"]["label"][:] == [0]


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOLS = [
    TALK[0],
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "e"},
    TALK[3],
]


def test_tool_calls(tmp_path: Path) -> None:
    """A turn that calls tools has no text. The chat template must write the call."""
    path = write(tmp_path, "talks.jsonl", [{"messages": TOOLS}] * 2)
    (talk, _) = read_splits(described(path)[0], cache=False, share=0.0).test["test"]["messages"][:]
    with pytest.raises(UserError, match="does not write the tool calls"):
        encode_chat(chat_tokenizer(), 64, talk)
    tokenizer = chat_tokenizer(
        TEMPLATE.replace("m['content'] + ' </s> '", "m['content'] ~ (' f' if m['tool_calls'] else '') ~ ' </s> '")
    )
    ids, spans = encode_chat(tokenizer, 64, talk)
    assert tokenizer.decode(ids[spans[0] : spans[1]]) == "f </s>"


def test_the_test_action_says_that_one_class_is_predicted(capfd, world: World, tmp_path: Path) -> None:
    """It says nothing of training."""
    for split, labels in (("train", {1}), ("validation", {0, 1})):
        rows = [{"text": row["sentence"], "label": row["label"]} for row in sentences(40, seed=1)]
        write_jsonl(tmp_path / "mine" / f"{split}.jsonl", [row for row in rows if row["label"] in labels])
    data = ("--dataset", tmp_path / "mine", "--labels", "0,1", "--project-dir", tmp_path, "--batch-size", 4)
    assert run("train", "opt_lora", "--load", world.opt, *data, "--learning-rate", 0.05, "--project", "run") == 0
    assert "training: adamw, learning rate 0.05" in capfd.readouterr().out
    assert run("test", "--load", tmp_path / "run" / "checkpoints" / "last.ckpt", "--project-dir", tmp_path) == 0
    out = capfd.readouterr().out
    assert "training:" not in out
    assert out.count("note: all predictions on validation are '1'") == 1
