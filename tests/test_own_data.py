"""Own data without an entry: what columns are for, labels, splits, conversations, and commands from start to end."""

from __future__ import annotations

import json
import tomllib
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from pyarrow import parquet

from actions.command.parse import parse_command
from actions.request.elements import request_of
from dataset.batching.collate import Collator
from dataset.batching.module import TextDataModule
from dataset.batching.preview import preview
from dataset.choices import is_ambiguous, place_of
from dataset.encoding.chat import encode_chat
from dataset.reading.own import describe, name_of
from dataset.reading.roles import Roles, roles_of
from dataset.reading.source import read_splits
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from options.data import DataOptions, OwnDataOptions
from tests.mistakes import complains, complaint, refused
from tests.tiny import word_tokenizer
from tests.world import World, metrics_of, run, sentences, write_jsonl

TEXT, WHOLE, REAL, LISTS = "text", "whole numbers", "real numbers", "lists"
LM = "causal_language_modeling"
ALPACA = {"instruction": TEXT, "input": TEXT, "output": TEXT}


# ---- the columns

CHOICES = [
    ({"text": TEXT, "label": WHOLE}, {}, None, Roles("classification", ("text",), "label")),
    ({"id": WHOLE, "text": TEXT, "extra": TEXT, "label": TEXT}, {}, None, Roles("classification", ("text",), "label")),
    ({"claim": TEXT, "answer": TEXT, "label": WHOLE}, {}, None, Roles("classification", ("claim", "answer"), "label")),
    ({"review": TEXT, "stars": WHOLE}, {"label_column": "stars"}, None, Roles("classification", ("review",), "stars")),
    ({"a": TEXT, "b": TEXT, "label": WHOLE}, {"text_columns": "b"}, None, Roles("classification", ("b",), "label")),
    ({"a, b": TEXT, "c": WHOLE}, {"text_columns": '"a, b"', "label_column": "c"}, None,
     Roles("classification", ("a, b",), "c")),
    ({"text": TEXT}, {}, None, Roles(LM, ("text",))),
    ({"story": TEXT}, {}, None, Roles(LM, ("story",))),
    ({"id": WHOLE, "text": TEXT}, {}, None, Roles(LM, ("text",))),
    ({"text": TEXT, "label": WHOLE}, {}, LM, Roles(LM, ("text",))),
    ({"prompt": TEXT, "completion": TEXT}, {}, None, Roles(LM, prompt=("prompt",), response="completion")),
    ({"q": TEXT, "response": TEXT}, {"prompt_column": "q"}, None, Roles(LM, prompt=("q",), response="response")),
    ({"prompt": TEXT, "response": TEXT}, {}, "summarization",
     Roles("summarization", prompt=("prompt",), response="response")),
    ({"messages": LISTS, "text": TEXT}, {}, None, Roles(LM, messages="messages")),
    ({"talk": LISTS}, {"messages_column": "talk"}, None, Roles(LM, messages="talk")),
    ({"conversations": LISTS, "id": WHOLE}, {}, None, Roles(LM, messages="conversations")),
    (ALPACA, {}, None, Roles(LM, prompt=("instruction", "input"), response="output")),
    ({"instruction": TEXT, "output": TEXT}, {}, None, Roles(LM, prompt=("instruction",), response="output")),
    ({"instruction": TEXT, "context": TEXT, "response": TEXT, "category": TEXT}, {}, None,
     Roles(LM, prompt=("instruction", "context"), response="response")),
    ({**ALPACA, "prompt": TEXT}, {}, None, Roles(LM, prompt=("prompt",), response="output")),
    (ALPACA, {"prompt_column": "input,instruction"}, None,
     Roles(LM, prompt=("input", "instruction"), response="output")),
    ({'a, "b"': TEXT, "output": TEXT}, {"prompt_column": '"a, ""b"""'}, None,
     Roles(LM, prompt=('a, "b"',), response="output")),
    ({"Text": TEXT, "Label": WHOLE}, {}, None, Roles("classification", ("Text",), "Label")),
    ({"PROMPT": TEXT, "Completion": TEXT}, {}, None, Roles(LM, prompt=("PROMPT",), response="Completion")),
    ({"Messages": LISTS, "id": WHOLE}, {}, None, Roles(LM, messages="Messages")),
    ({"text": TEXT, "Text": TEXT, "label": WHOLE}, {}, None, Roles("classification", ("text",), "label")),
    ({"text": TEXT, "labels": WHOLE}, {}, None, Roles("classification", ("text",), "labels")),
    ({"text": TEXT, "labels": WHOLE, "label": WHOLE}, {}, None, Roles("classification", ("text",), "label")),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "given", "task", "expected"), CHOICES)
def test_the_one_obvious_choice_is_taken(columns, given, task, expected) -> None:
    assert roles_of(columns, OwnDataOptions(**given), task, "mine") == expected


@pytest.mark.parametrize(
    ("columns", "given", "task", "found", "advice"),
    [
        ({"review": TEXT, "stars": WHOLE}, {}, None, "no obvious meaning: none is named 'text', 'label', 'prompt', "
         "'instruction', 'messages' or 'conversations'", "are review (text), stars (whole"),
        ({"text": WHOLE, "label": WHOLE}, {}, None, "no obvious meaning: no column holds text", "--text-columns and"),
        ({"Text": TEXT, "TEXT": TEXT, "a": TEXT, "label": WHOLE}, {}, None,
         "no obvious meaning: several columns may hold the text", "--text-columns and"),
        ({"prompt": TEXT, "completion": TEXT, "label": "truth values"}, {}, None,
         "'completion' may be the response to train on, or a text with the label", ""),
        ({"review": TEXT, "stars": WHOLE}, {"text_columns": "review"}, None, "no column is named 'label'", "--label"),
        ({"a": TEXT, "b": TEXT, "c": TEXT, "label": WHOLE}, {}, None, "several columns", "--text-columns"),
        ({"prompt": TEXT, "x": TEXT}, {"prompt_column": "prompt"}, None, "--response-column is missing", "x (text)"),
        ({"text": TEXT}, {"text_columns": "text", "prompt_column": "text"}, None, "both given", "of texts or of"),
        ({"text": TEXT}, {"text_columns": "a,b,c"}, None, "names 3 columns", "two for pairs"),
        ({"text": TEXT, "label": WHOLE}, {"labels": "a"}, None, "--labels a", "at least two"),
        ({"text": TEXT, "label": WHOLE}, {}, "summarization", "--task summarization", "classify texts"),
        ({"text": TEXT}, {"prompt_column": "text", "response_column": "text"}, None, "both text", "two columns"),
        (ALPACA, {"prompt_column": "instruction,output", "response_column": "output"}, None, "are both output", ""),
        (ALPACA, {"prompt_column": "input,input", "response_column": "output"}, None, "'input' is given twice",
         "--prompt-column"),
        (ALPACA, {"prompt_column": "input,,instruction"}, None, "names an empty column", ""),
    ],
)  # fmt: skip
def test_more_than_one_choice_or_none(columns, given, task, found: str, advice: str) -> None:
    with refused(found, advice):
        roles_of(columns, OwnDataOptions(**given), task, "mine")


# ---- files, labels and splits


def described(path: Path, task: str | None = None, **own: object) -> tuple[DatasetSpec, OwnDataOptions]:
    return describe(str(path), OwnDataOptions(**own), task, cache=False)


ROWS = [{"text": f"row {index}", "label": (5, 1, 2)[index % 3]} for index in range(30)]


def write(folder: Path, name: str, rows: list[dict[str, object]] = ROWS) -> Path:
    path, names = folder / name, list(rows[0])
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        between = "," if path.suffix == ".csv" else "\t"
        lines = [names, *([str(row[name]) for name in names] for row in rows)]
        path.write_text("".join(between.join(line) + "\n" for line in lines))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    """Labels are the values found, in order; whole numbers are classes."""
    spec, own = described(write(tmp_path, f"mine.{suffix}"))
    assert (spec.name, spec.labels, spec.metrics) == ("mine", ("1", "2", "5"), ("accuracy", "macro_f1"))
    assert (own.text_columns, own.label_column, own.labels, own.regression) == ("text", "label", "1,2,5", False)
    splits = read_splits(spec, cache=False, share=0.1, seed=3)
    assert (len(splits.train), len(splits.validation["validation"])) == (27, 3)
    assert splits.test is splits.validation
    of_text = {row["text"]: ("1", "2", "5").index(str(row["label"])) for row in ROWS}
    assert all(of_text[row["text"]] == row["label"] for row in splits.train)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_labels_and_rows_come_from_one_pass(tmp_path: Path, monkeypatch, suffix: str) -> None:
    """The columns are seen in the first 100,000 rows. One of the labels is in a later one."""
    rows = [{"text": "a", "label": label} for label in (*([1, 2] * 50_001), 5)]
    path, answers = write(tmp_path, f"mine.{suffix}", rows), tmp_path / f"answers.{suffix}"
    write(tmp_path, answers.name, [{"prompt": "a", "response": "b"}] * 2)
    opened, path_open = [], Path.open
    monkeypatch.setattr(Path, "open", lambda path, *mode: opened.append(path) or path_open(path, *mode))
    spec, _ = described(path)
    splits = read_splits(spec, cache=False, share=0.0)
    assert opened == [path]
    assert (spec.labels, splits.test["test"]["label"][-3:]) == (("1", "2", "5"), [0, 1, 2])
    spec, _ = described(answers, prompt_column="prompt", response_column="response")
    read_splits(spec, cache=False)
    assert opened == [path, answers], "the options describe it"


def test_the_record_describes_data_that_are_gone(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.csv")
    spec, own = described(path)
    path.unlink()
    again, same = describe(str(path), own, "classification", cache=False)
    assert (again.labels, again.columns, again.label, same) == (spec.labels, spec.columns, spec.label, own)


@pytest.mark.parametrize(
    ("labels", "own", "expected"),
    [
        (["good", "bad", "good"], {}, ("bad", "good")),
        (["good", "bad", "good"], {"labels": "good, bad"}, ("good", "bad")),
        ([" b", "a, x", "b"], {}, ("a, x", "b")),
        ([True, False, True], {}, ("false", "true")),
        ([1.5, 2.0, 1.0], {}, ()),
        ([1, 2, 1], {"regression": True}, ()),
        ([1.0, 2.0, 1.0], {"regression": False}, ("1", "2")),
    ],
)
def test_labels(tmp_path: Path, labels, own, expected) -> None:
    rows = [{"text": "a", "label": label} for label in labels]
    path = write(tmp_path, "mine.jsonl", rows)
    spec, recorded = described(path, **own)
    assert spec.labels == expected
    assert describe(str(path), recorded, spec.task, cache=False)[0].labels == expected, "as a checkpoint records it"
    assert spec.regression == (not expected)
    splits = read_splits(spec, cache=False, share=0.0)
    assert list(splits.test) == ["test"]
    names = [str(label).lower() if isinstance(label, bool) else str(label).strip() for label in labels]
    ids = [
        float(label) if not expected else expected.index(name.removesuffix(".0"))
        for name, label in zip(names, labels, strict=True)
    ]
    assert splits.test["test"]["label"][:] == ids


@pytest.mark.parametrize(
    ("labels", "own", "found", "advice"),
    [
        (["a"] * 3, {}, "the same label in every row", "at least two"),
        ([*range(50)], {}, "50 different labels in 50 rows", "--regression"),
        (["a", "b", "c"], {"labels": "a,b"}, "row 2 of split 'train' of data set 'mine' has label 'c'", "--labels"),
        (["a", None, "b", " "], {}, "2 rows without a label", "--drop-incomplete, which leaves them out; the labels"),
        ([["a"], ["a", "b"], []], {"multi_label": False}, "has the label [\"a\"]", "multi-label"),
        (["a", "b\n1", "b"], {}, "the label 'b\\n1'", "control characters"),
    ],
)  # fmt: skip
def test_mistakes_in_labels(tmp_path: Path, labels, own, found: str, advice: str) -> None:
    path = write(tmp_path, "mine.jsonl", [{"text": "a", "label": label} for label in labels])
    with refused(found, advice):
        read_splits(described(path, **own)[0], cache=False)


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.json", "mine.parquet"])
def test_fields_of_objects_are_columns(tmp_path: Path, name: str) -> None:
    """They are named by their path, and are never taken without being named."""
    rows = [{"id": i, "review": {"text": f"row {i}", "by": {"stars": i % 2}}} for i in range(6)]
    path = write(tmp_path, name, rows)
    spec, _ = described(path, text_columns="review.text", label_column="review.by.stars")
    read = read_splits(spec, cache=False, share=0.0).train
    assert (spec.labels, read["review.text"][:2], read["review.by.stars"][:2]) == (
        ("0", "1"),
        ["row 0", "row 1"],
        [0, 1],
    )
    with refused("no obvious meaning", "review.text (text)"):
        described(path)
    with refused("no column 'review.txt'", "did you mean 'review.text'"):
        described(path, text_columns="review.txt", label_column="id")


INCOMPLETE = [
    {"text": "good", "label": "a"}, {"text": "", "label": "a"}, {"text": "NaN", "label": "b"},
    {"text": None, "label": "b"}, {"text": "bad", "label": None}, {"text": "fine", "label": "b"},
]  # fmt: skip


class TestIncomplete:
    def test_rows_are_left_out(self, tmp_path: Path) -> None:
        spec, own = described(write(tmp_path, "mine.jsonl", INCOMPLETE), drop_incomplete=True)
        read = read_splits(spec, cache=False, share=0.0)
        assert read.train["text"][:] == ["good", "fine"]
        assert read.train["label"][:] == [0, 1]
        assert own.drop_incomplete
        where = "split 'train' of data set 'mine'"
        assert f"4 of 6 rows of {where} are left out: 3 without a text, 1 without a label" in read.notes

    def test_without_the_option_a_note_counts_them(self, tmp_path: Path) -> None:
        rows = [row for row in INCOMPLETE if row["label"] is not None]
        read = read_splits(described(write(tmp_path, "mine.jsonl", rows))[0], cache=False, share=0.0)
        assert len(read.train) == 5
        where = "split 'train' of data set 'mine'"
        assert (
            f"2 rows of {where} have a text that is empty or NA, null or nan; --drop-incomplete leaves them out"
            in read.notes
        )
        assert f"1 rows of {where} have no text in column 'text': an empty text is used" in read.notes

    def test_an_instruction_may_have_no_input(self, tmp_path: Path) -> None:
        rows = [
            {"instruction": "say it", "input": "", "output": "it"}, {"instruction": "", "input": "", "output": "it"},
            {"instruction": "say it", "input": "now", "output": ""},
        ]  # fmt: skip
        spec, _ = described(write(tmp_path, "mine.jsonl", rows), drop_incomplete=True)
        assert read_splits(spec, cache=False, share=0.0).train["instruction"][:] == ["say it"]

    def test_nothing_left(self, tmp_path: Path) -> None:
        rows = [{"text": "", "label": label} for label in "ab"]
        with refused("split 'train' of data set 'mine'", "row"):
            read_splits(described(write(tmp_path, "mine.jsonl", rows), drop_incomplete=True)[0], cache=False)


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its split `unsupervised` has no labels and is not read."""
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    splits = {"train": [1, 0] * 10, "test": [0, 1], "unsupervised": [-1]}
    rows = {name: {"text": ["a"] * len(ids), "label": ids} for name, ids in splits.items()}
    made = DatasetDict({name: Dataset.from_dict(columns, features) for name, columns in rows.items()})
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *name: asked.append(name) or made)
    spec, _ = describe("owner/set:part", OwnDataOptions(), None, cache=False)
    read = read_splits(spec)
    assert {*asked} == {("owner/set", "part")}
    assert (spec.name, spec.labels, read.test["test"]["label"][:]) == ("set", ("neg", "pos"), [0, 1])
    assert (len(read.train), list(read.validation)) == (19, ["validation"])


def test_class_labels_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """One class cannot be learned. A test split with hidden labels is not read, also if a class is called -1."""

    def on_hub(names: list[str]) -> DatasetDict:
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        splits = {"train": [0, len(names) - 1] * 5, "validation": [0], "test": [-1, -1]}
        rows = {split: {"text": ["a"] * len(ids), "label": ids} for split, ids in splits.items()}
        return DatasetDict({split: Dataset.from_dict(columns, features) for split, columns in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", lambda *_: on_hub(["-1", "1"]))
    read = read_splits(describe("owner/set", OwnDataOptions(), None, cache=False)[0])
    assert list(read.test) == ["validation"]
    assert read.notes[0] == "split 'test' has no labels in column 'label' and is not read"
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: on_hub(["only"]))
    with pytest.raises(UserError, match="the same label in every row; give --label-column a column with at least two"):
        describe("owner/set", OwnDataOptions(), None, cache=False)


def test_a_folder_with_one_file_per_split(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv", "test.csv"):
        write(tmp_path, name)
    (tmp_path / "readme.txt").write_text("not data")
    splits = read_splits(described(tmp_path)[0], cache=False)
    assert [list(splits.validation), list(splits.test), splits.notes] == [["dev"], ["test"], ()]


def test_rows_are_held_out_by_seed(tmp_path: Path) -> None:
    spec, _ = described(write(tmp_path, "mine.csv"))
    drawn = [
        read_splits(spec, cache=False, share=0.2, seed=seed).validation["validation"]["text"][:] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_lines_of_a_text_are_held_out_in_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"".join(b"line %d\r\n" % index for index in range(100)))
    spec, own = described(path)
    assert (spec.task, spec.running_text, own.text_columns) == (LM, True, "text")
    splits = read_splits(spec, cache=False, share=0.1, seed=4)
    lines = splits.validation["validation"]["text"][:]
    first = int(lines[0].split()[1])
    assert lines == [f"line {index}\n" for index in range(first, first + 10)]
    assert len(splits.train) == 90


@pytest.mark.parametrize("row", [{"prompt": "a", "response": "b"}, {"messages": [{"role": "user", "content": "a"}]}])
def test_responses_without_a_train_split(tmp_path: Path, row: dict[str, object]) -> None:
    for split in ("validation", "test"):
        write(tmp_path, f"{split}.jsonl", [row] * 4)
    spec, _ = described(tmp_path)
    with pytest.raises(UserError, match="train"):
        read_splits(spec, cache=False, share=0.0)


def test_a_quotation_mark_of_the_text_in_a_tsv_file(tmp_path: Path) -> None:
    """Two of them would join the rows between them."""
    path = tmp_path / "glue.tsv"
    path.write_text('text\tlabel\n"hello world\t1\nfoo bar"\t0\nx\t1\ny\t0\n')
    with pytest.raises(UserError, match=r"line 3 of .*a cell between quotation marks holds a tab"):
        read_splits(described(path)[0], cache=False)


def test_a_csv_label_that_is_the_text_of_one_choice_and_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "questions.csv"
    path.write_text('q,choices,answer\nhow many?,"[""2"", ""0"", ""1""]",2\nwhere?,"[""a"", ""b"", ""c""]",1\n')
    spec, _ = described(path, prompt_column="q", choices_column="choices", label_column="answer")
    first, second = read_splits(spec, cache=False, share=0.0).train["answer"][:]
    assert is_ambiguous(first, ["2", "0", "1"])
    assert place_of(second, ["a", "b", "c"], None) == 1


@pytest.mark.parametrize(("values", "labels"), [(["1.50", "2.25"], ()), (["1", "2"], ("1", "2"))])
def test_decimal_labels_are_numbers(tmp_path: Path, values: list[str], labels: tuple[str, ...]) -> None:
    rows = [{"text": f"row {index}", "label": Decimal(values[index % 2])} for index in range(8)]
    spec, _ = described(write(tmp_path, "prices.parquet", rows))
    assert (spec.labels, spec.regression) == (labels, not labels)
    found = read_splits(spec, cache=False, share=0.0).train["label"][:2]
    assert found == ([1.5, 2.25] if not labels else [0, 1])


def test_names_of_classes_have_no_spaces_around_them(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg ", " pos"])})
    rows = Dataset.from_dict({"text": ["a", "b"] * 4, "label": [0, 1] * 4}, features=features)
    DatasetDict({"train": rows}).save_to_disk(tmp_path / "data")
    spec, _ = described(tmp_path / "data")
    assert spec.labels == ("neg", "pos")
    assert read_splits(spec, cache=False, share=0.0).train["label"][:2] == [0, 1]


def test_a_column_whose_name_no_file_of_options_can_hold(tmp_path: Path) -> None:
    path = tmp_path / "reviews.csv"
    path.write_text('"review\ntext",label\n' + "good,yes\nbad,no\n" * 10)
    with pytest.raises(UserError, match=r"has the column 'review\\ntext'; give it a name without control characters"):
        described(path)


def test_which_folders_hold_one_text(tmp_path: Path) -> None:
    """Lines of txt files are one text, also in `data`. Rows beside a text file that is no data are documents."""
    for name, files in {
        "inside": {"data/train.txt": "a\nb\n"},
        "alone": {"test.txt": "a\nb\n"},
        "beside": {"train.csv": "text\na\nb\n", "train_notes.txt": "not data"},
    }.items():
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    found = {folder.name: described(folder)[0].running_text for folder in tmp_path.iterdir()}
    assert found == {"inside": True, "alone": True, "beside": False}


def test_values_that_json_has_not(tmp_path: Path) -> None:
    """Turn of a conversation with a time, as in WildChat, and choices that are dates."""
    turns = [{**turn, "timestamp": datetime(2024, 1, 2)} for turn in TALK]
    path = write(tmp_path, "talks.parquet", [{"messages": turns}] * 2)
    (talk, _) = read_splits(described(path)[0], cache=False, share=0.0).test["test"]["messages"][:]
    assert json.loads(talk)[0] == {**TALK[0], "timestamp": "2024-01-02 00:00:00"}
    rows = [{"q": "when?", "days": [date(2024, 1, 1), date(2025, 1, 1)], "label": 1}] * 2
    path = write(tmp_path, "days.parquet", rows)
    spec, _ = described(path, prompt_column="q", choices_column="days")
    assert json.loads(read_splits(spec, cache=False).train["days"][0]) == ["2024-01-01", "2025-01-01"]


def test_labels_that_are_lists(tmp_path: Path) -> None:
    path = write(tmp_path, "tags.parquet", [{"text": "a", "label": [1, 2]}] * 3)
    with pytest.raises(UserError, match=r"column 'label' of data set 'tags' has the label \[1, 2\]; give each row one"):
        described(path, multi_label=False)


def test_no_word_of_hidden_labels(tmp_path: Path) -> None:
    """They are those of a benchmark. An entry without a test split has just none."""
    write(tmp_path, "train.jsonl"), write(tmp_path, "validation.jsonl")
    spec = DatasetSpec(
        "x", "classification", ("text",), ("accuracy",), labels=("1", "2", "3", "4", "5", "6"), test=None
    )
    assert read_splits(spec, tmp_path, cache=False).notes == ("there is no test split: test uses validation",)


# ---- conversations

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + ' </s> ' }}{% endgeneration %}{% else %}{{ m['content'] + ' </s> ' }}{% endif %}{% endfor %}"
)
TALK = [
    {"role": "user", "content": "a b c"},
    {"role": "assistant", "content": "d e"},
    {"role": "user", "content": "f"},
    {"role": "assistant", "content": "g"},
]


def chat_tokenizer(template: str = TEMPLATE):
    made = word_tokenizer(["a b c d e f g <user> <assistant>"], "plain")
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [TEMPLATE, MARKED])
def test_the_loss_is_on_the_turns_of_the_assistant(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    ids, spans = encode_chat(tokenizer, 64, json.dumps(TALK))
    row = {"input_ids": ids, "spans": spans, "length": len(ids), "index": 0, "weight": 1.0}
    labels = Collator(tokenizer)([row])["labels"][0]
    assert tokenizer.decode(ids) == "<user> a b c </s> <assistant> d e </s> <user> f </s> <assistant> g </s>"
    assert tokenizer.decode(labels[labels >= 0]) == "d e </s> g </s>"


@pytest.mark.parametrize(
    ("limit", "text", "learned"),
    [(9, "<user> a b c </s> <assistant> d e </s>", "d e </s>"), (7, "b c </s> <assistant> d e </s>", None),
     (4, "<assistant> d e </s>", "d e </s>")],
)  # fmt: skip
def test_long_conversations_keep_an_answer(limit: int, text: str, learned: str | None) -> None:
    tokenizer = chat_tokenizer()
    ids, spans = encode_chat(tokenizer, limit, json.dumps(TALK))
    assert tokenizer.decode(ids).endswith(text)
    assert len(ids) == limit
    assert tokenizer.decode(ids[spans[0] : spans[1]]) == "d e </s>" or learned is None


REWRITING = "{% for m in messages %}{{ loop.length ~ ' ' + m['content'] + ' ' }}{% endfor %}"


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(UserError, match="marks them with"):
        encode_chat(chat_tokenizer(REWRITING), 64, json.dumps(TALK))


def test_one_template_of_several() -> None:
    """The default one counts, and marks the turns that it rewrites."""
    marked = MARKED.replace("{{ '<' +", "{{ loop.length ~ ' <' +")
    ids, spans = encode_chat(chat_tokenizer(marked), 64, json.dumps(TALK))
    assert encode_chat(chat_tokenizer({"default": marked, "tool_use": "a"}), 64, json.dumps(TALK)) == (ids, spans)


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([{"author": "human", "text": "a"}], "turn 1 in row 1 of split 'train'"),
        ([{"role": "user", "content": "a"}], "row 1 of split 'train' of data set 'talks' has no turn of the role"),
        ([], "row 1 of split 'train' of data set 'talks' has [] for messages"),
        ("a b", "has messages that are not JSON"),
        (
            [TALK[0], {"role": "assistant", "content": "a\ud83d"}],
            r"row 1 of split 'train' of data set 'talks' holds '\ud83d'",
        ),
        ([{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}], "from 'function_call'"),
        ([{"from": "human", "value": "a"}, {"from": ["gpt"], "value": "a"}], "is from ['gpt']"),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": 3}], "is {'role': 'assistant', 'content': 3}"),
        ([{"from": "human", "value": "a"}, {"from": "gpt"}], "turn 2 in row 1 of split 'train'"),
    ],
)
def test_mistakes_in_conversations(tmp_path: Path, messages, found: str) -> None:
    path = write(tmp_path, "talks.jsonl", [{"messages": TALK}, {"messages": messages}])
    with refused(found):
        read_splits(described(path)[0], cache=False)


def data_of(path: Path, tokenizer, limit: int, **own: object) -> TextDataModule:
    spec, _ = described(path, **own)
    data = TextDataModule(spec, DataOptions(2, max_token_len=limit, validation_share=0.5, validation_seed=0))
    data.attach(tokenizer, 64)
    return data


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_cache_knows_the_chat_template(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, f"talks.{suffix}", [{"messages": TALK}] * 2)
    first, second = (
        data_of(path, chat_tokenizer(template), 64) for template in (TEMPLATE, TEMPLATE.replace("' </s> '", "' f '"))
    )
    rows = [data.encoded(data.splits.train)[0]["input_ids"] for data in (first, second)]
    assert rows[0] != rows[1]
    assert "  <user> a b c </s> <assistant> [[d e </s>]] <user>" in preview(
        first, first.splits.train, "training"
    ).replace("</s> ]]", "</s>]]").replace("<assistant>[[", "<assistant> [[").replace("]]<user>", "]] <user>")


def test_truncated_rows_are_counted(tmp_path: Path) -> None:
    rows = [{"text": "a b c d", "label": "x"}, {"text": "a b", "label": "y"}] * 2
    data = data_of(write(tmp_path, "mine.jsonl", rows), word_tokenizer(["a b c d"], "plain"), 2)
    assert data.truncated(data.splits.train) == sum(text == "a b c d" for text in data.splits.train["text"])
    answers = [{"prompt": "a b c d", "response": "d"}] * 2
    data = data_of(write(tmp_path, "answers.jsonl", answers), word_tokenizer(["a b c d"], "plain"), 5)
    assert data.truncated(data.splits.train) == 1
    shown = preview(data, data.splits.train, "training")
    assert "language modelling of the response in 'response' to the prompt in 'prompt'" in shown
    assert "[[d</s>]]" in shown.replace(" ", "")


# ---- commands


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"review": row["sentence"], "stars": (1, 5)[row["label"]]} for row in sentences(40, seed=1)]
    return write(tmp_path_factory.mktemp("own"), "reviews.csv", rows)


@pytest.fixture(scope="module")
def trained(world: World, reviews: Path) -> Path:
    """The folder of a run on own data that a `[dataset]` table describes."""
    config = reviews.with_name("options.toml")
    config.write_text(f'[dataset]\npath = "{reviews}"\ntext-columns = ["review"]\nlabel_column = "stars"\n')
    base = ("--load", world.opt, "--pretrained", "--lora-config", world.lora, "--batch-size", 4, "--max-steps", 2)
    more = ("--project-dir", reviews.parent, "--project", "run", "--validation-share", 0.2, "--seed", 3)
    assert run("train", "opt_lora", "--config", config, *base, *more) == 0
    return reviews.parent / "run"


def test_a_run_records_what_it_understood(trained: Path, reviews: Path) -> None:
    options = tomllib.loads((trained / "config.toml").read_text())
    recorded = {"dataset": str(reviews), "text_columns": "review", "label_column": "stars", "labels": "1,5",
                "regression": False, "validation_share": 0.2, "validation_seed": 3}  # fmt: skip
    assert recorded.items() <= options.items()


def test_later_commands_need_no_flags(capfd, trained: Path, reviews: Path, tmp_path: Path) -> None:
    """`test` with another seed measures the same rows; data that moved may be named; other data are measured whole."""
    checkpoint = ("--load", trained / "checkpoints" / "best.ckpt", "--project-dir", tmp_path, "--batch-size", 4)
    assert run("test", *checkpoint, "--project", "same", "--seed", 8) == 0
    assert metrics_of(tmp_path / "same") == metrics_of(trained)
    assert "classification of the text in 'review' by 'stars', 2 labels: 1, 5" in capfd.readouterr().out
    moved = tmp_path / "moved.csv"
    moved.write_bytes(reviews.read_bytes())
    assert run("test", *checkpoint, "--dataset", moved, "--project", "other") == 0
    assert "rows: 40 test; no test row is truncated" in capfd.readouterr().out
    last = ("train", "--resume-training", "--load", trained / "checkpoints" / "last.ckpt", "--max-steps", 3)
    assert run(*last, "--dataset", moved) == 0
    moved.write_text(moved.read_text().replace("film", "play"))
    assert "digest of the rows" in complaint(
        capfd, *map(str, last[:-1]), "4", "--dataset", moved, "--accelerator", "cpu"
    )
    request = request_of(parse_command(["test", *map(str, checkpoint), "--dataset", "sst2"]))
    assert request.options.own == OwnDataOptions(), "the entry describes sst2"


@pytest.mark.parametrize(
    ("arguments", "found", "expected"),
    [
        (("--text-columns", "reviw", "--label-column", "stars"), "no column 'reviw'", "did you mean 'review'?"),
        (("--prompt-column", "review,star", "--response-column", "stars"), "no column 'star'", "did you mean 'stars'?"),
        ((), "no obvious meaning", "--text-columns"),
        (("--validation-share", "0", "--text-columns", "review", "--label-column", "stars"), "share 0", "above 0"),
        (("--validation-share", "1"), "--validation-share 1", "[0, 1)"),
        (("--dataset", "revews"), "'revews' is not known", "a file (csv, tsv, jsonl, json, parquet, txt), a folder"),
        (("--dataset", "{}/revews.csv"), "revews.csv is not there", "did you mean 'reviews.csv'?"),
        (("--dataset", "{}/options.toml"), "another kind", "csv"),
    ],
)
def test_mistakes_end_before_the_model_loads(
    capfd, monkeypatch: pytest.MonkeyPatch, reviews: Path, trained: Path, arguments, found: str, expected: str
) -> None:
    monkeypatch.setattr("actions.training.experiment.load_base", None)
    given = (argument.format(reviews.parent) for argument in arguments)
    data = () if "--dataset" in arguments else ("--dataset", reviews)
    complains(capfd, found, expected, "train", "opt_lora", *data, *given)


def test_mistakes_in_the_table(capfd, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    for text, found in {
        '[dataset]\npath = "a"\nlabel_colum = "b"': "did you mean 'label_column'?",
        '[dataset]\nlabel_column = "b"': "has no key 'path'",
        'labels = "a,b"\n[dataset]\npath = "a"\nlabels = "b,a"': "a second time",
    }.items():
        path.write_text(text)
        assert found in complaint(capfd, "train", "--config", path)


def test_names() -> None:
    names = ("wikitext-2-v1", "some/reviews.csv", "owner/set:part", "owner/set-v1.5", "./folder/", "data/v1.0")
    assert [name_of(name) for name in names] == ["wikitext2", "reviews", "set", "set-v1.5", "folder", "v1.0"]
