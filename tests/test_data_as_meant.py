"""Own data that could be read in another way than it is meant: it is read as meant, or refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from actions.request.origin import TOY_BASE
from dataset.encoding.chat import encode_chat
from dataset.reading.conversations import conversations
from dataset.reading.own import describe
from dataset.reading.roles import roles_of
from dataset.reading.source import read_splits
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from options.data import OwnDataOptions
from tests.world import write_jsonl


def described(path: Path, **own: object) -> DatasetSpec:
    return describe(str(path), OwnDataOptions(**own), None, cache=False)[0]


def read(path: Path, **own: object):
    return read_splits(described(path, **own), cache=False)


# ---- csv


def test_cells_with_quotation_marks_inside(tmp_path: Path) -> None:
    """Arrow reads the rows from the first such mark to the next one as one row."""
    rows = [("one", 0), ('"open', 1), ("two", 0), ("three", 1), ('"close" x', 0)]
    for suffix, mark in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"rows.{suffix}"
        path.write_text(f"text{mark}label\n" + "".join(f"{text}{mark}{label}\n" for text, label in rows))
        with pytest.raises(UserError, match=r"line \d of '.*rows\..sv'.*; a cell that begins with a quotation mark"):
            read(path)
    quoted = 'text,label\n"a ""b"", and\nc",0\nan inch is 1" long,1\n"' + "d" * 200_000 + '",0\n'
    (tmp_path / "quoted.csv").write_text(quoted)
    splits = read(tmp_path / "quoted.csv")
    texts = [*splits.train["text"], *splits.validation["validation"]["text"]]
    assert sorted(map(len, texts)) == [12, 18, 200_000]


@pytest.mark.parametrize(
    ("labels", "names"),
    [(("01", "02"), ("01", "02")), (("1E5", "2E5"), ("1E5", "2E5")), (("0x10", "0x11"), ("0x10", "0x11")),
     (("1", "2"), ("1", "2")), (("0.5", "1e-05"), ())],
)  # fmt: skip
def test_labels_of_csv_that_are_codes(tmp_path: Path, labels: Sequence[str], names: tuple[str, ...]) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + "".join(f"a {i},{labels[i % 2]}\n" for i in range(30)))
    assert described(tmp_path / "rows.csv").labels == names


def test_a_long_first_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n" + f"{'word ' * 400_000},a\n" + "b,b\n" * 20)
    assert described(tmp_path / "rows.csv").labels == ("a", "b")


def test_spaces_in_the_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text, label\n" + "a,b\nc,d\n" * 20)
    assert described(tmp_path / "rows.csv").label == " label"


# ---- splits


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("test.jsonl",), "has only the split 'test'; give it a split 'train'"),
        (("train.jsonl.gz", "test.jsonl"), r"train\.jsonl\.gz is compressed; unpack it"),
        (("train-00000-of-00003.jsonl",), "lacks 2 files of split 'train', such as train-00001-of-00003"),
    ],
)
def test_training_rows_that_are_not_there(tmp_path: Path, names: Sequence[str], message: str) -> None:
    for name in names:
        write_jsonl(tmp_path / name, [{"text": f"a {i}", "label": i % 2} for i in range(30)])
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_all_rows_of_a_test_split_can_be_measured(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "test.jsonl", [{"text": f"a {i}", "label": i % 2} for i in range(30)])
    splits = read_splits(described(tmp_path), cache=False, share=0.0)
    assert {name: len(rows) for name, rows in splits.test.items()} == {"test": 30}


# ---- columns


def test_a_column_that_few_rows_have(tmp_path: Path) -> None:
    rows = [{"instruction": f"say {i}", "output": "yes"} for i in range(1100)]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, {"instruction": "say", "input": "this", "output": "no"}])
    assert described(tmp_path / "rows.jsonl").columns == ("instruction", "input", "output")


def test_good_and_bad_responses(tmp_path: Path) -> None:
    columns = {"prompt": "text", "completion": "text", "label": "truth values"}
    with pytest.raises(UserError, match="'completion' may be the response to train on, or a text with the label"):
        roles_of(columns, OwnDataOptions(), None, "kto")


def test_columns_beside_conversations_are_named(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_jsonl(tmp_path / "rows.jsonl", [{"messages": talk, "tools": "[]"}] * 30)
    assert (
        "column 'tools' of rows is not read: it is no part of what the model sees"
        in read(tmp_path / "rows.jsonl").notes
    )


def test_a_label_that_is_a_text_and_a_place(tmp_path: Path) -> None:
    from dataset.encoding.render import render

    spec = described(tmp_path / "rows.jsonl", prompt_column="q", choices_column="c", label_column="a")
    table = pa.table({"q": ["?"], "c": [json.dumps(["3", "4", "5", "1"])], "a": ["1"]})
    with pytest.raises(UserError, match="has '1' in column 'a', the text of one choice and the place of another"):
        render(spec, table)


# ---- conversations

SPACED = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
ASK, ANSWER = {"role": "user", "content": "are you well?"}, {"role": "assistant", "content": "fine, thanks"}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """Its tokens begin with the space before a word."""
    made = AutoTokenizer.from_pretrained(TOY_BASE)
    made.chat_template = SPACED
    return made


def learned(tokenizer: PreTrainedTokenizerBase, *messages: dict[str, object]) -> list[str]:
    ids, spans = encode_chat(tokenizer, 512, json.dumps(messages))
    return [tokenizer.decode(ids[a:b]).strip() for a, b in zip(spans[::2], spans[1::2], strict=True)]


def test_a_token_that_joins_the_prompt_and_the_answer(tokenizer: PreTrainedTokenizerBase) -> None:
    end = tokenizer.eos_token
    assert learned(tokenizer, ASK, ANSWER) == [f"fine, thanks{end}"]
    assert learned(tokenizer, ASK, ANSWER, ASK, {**ANSWER, "content": "a"}) == [f"fine, thanks{end}", f"a{end}"]


def test_an_assistant_that_speaks_first(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = SPACED.replace("{% for", "{{ raise_exception('empty') if not messages }}{% for")
    end = tokenizer.eos_token
    assert learned(tokenizer, ANSWER, ASK, ANSWER) == [f"fine, thanks{end}"] * 2
    tokenizer.chat_template = SPACED


def test_turns_of_weight_0_are_only_read(tokenizer: PreTrainedTokenizerBase) -> None:
    found = learned(tokenizer, ASK, {**ANSWER, "content": "no", "weight": 0}, ASK, {**ANSWER, "weight": 1})
    assert found == [f"fine, thanks{tokenizer.eos_token}"]
    with pytest.raises(UserError, match="has no turn of the role 'assistant'"):
        conversations("x", [[ASK, {**ANSWER, "weight": 0}]])


def test_what_arrow_adds_to_turns(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    calls = [
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"city": "here"}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "g", "arguments": {"time": "now"}}]},
    ]
    talks = [[ASK, call] for call in calls] + [[ASK, {**ANSWER, "tool_calls": []}]]
    parquet.write_table(pa.table({"messages": talks}), tmp_path / "rows.parquet")
    texts = conversations("x", parquet.read_table(tmp_path / "rows.parquet")["messages"].to_pylist())
    assert "null" not in "".join(texts)
    assert json.loads(texts[1])[1]["tool_calls"] == [{"name": "g", "arguments": {"time": "now"}}]
    assert "tool_calls" not in json.loads(texts[2])[1]
    assert learned(tokenizer, *json.loads(texts[2])) == [f"fine, thanks{tokenizer.eos_token}"]
