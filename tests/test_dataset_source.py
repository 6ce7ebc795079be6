"""Splits from folders of every kind, and one clear line for everything that can be wrong with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from dataset import registry
from dataset.reading import source
from dataset.reading.source import read_splits
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError

RTE = registry.get("rte")
ROWS = {
    "sentence1": ["A man sleeps.", "NA", "a, b", 'say "x"'],
    "sentence2": ["Someone sleeps.", "null", "", "y"],
    "label": [0, 1, 1, 0],
}
SPLITS = {"train": ROWS, "validation": {key: values[:2] for key, values in ROWS.items()}}


def save(folder, splits, kind, features=None):
    """`splits` (split → columns) in one of the formats that `--dataset-saved-path` takes."""
    made = DatasetDict({split: Dataset.from_dict(columns, features) for split, columns in splits.items()})
    if kind == "save_to_disk":
        made.save_to_disk(folder)
        return folder
    folder.mkdir(exist_ok=True)
    for split, rows in made.items():
        if kind == "jsonl":
            rows.to_json(folder / f"{split}.jsonl")
        elif kind == "json":
            (folder / f"{split}.json").write_text(json.dumps(rows.to_list()))
        elif kind == "csv":
            rows.to_csv(folder / f"{split}.csv")
        else:
            rows.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["save_to_disk", "jsonl", "json", "csv", "parquet"])
def test_every_format(tmp_path, kind, cache):
    splits = read_splits(RTE, save(tmp_path / "data", SPLITS, kind), cache=cache)
    assert splits.train.to_dict() == ROWS
    assert splits.validation["validation"].to_dict() == SPLITS["validation"]
    assert splits.test is splits.validation
    assert splits.notes == ("the test labels of rte are hidden: test uses validation",)


def test_without_cache_nothing_stays(tmp_path, monkeypatch):
    folder = save(tmp_path / "data", SPLITS, "jsonl")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    read_splits(RTE, folder, cache=False)
    assert not list((tmp_path / "cache").glob("**/*.arrow"))
    read_splits(RTE, folder, cache=True)
    assert list((tmp_path / "cache").glob("**/*.arrow"))


def test_only_the_named_columns_are_kept(tmp_path):
    folder = save(tmp_path / "data", {split: {**rows, "idx": rows["label"]} for split, rows in SPLITS.items()}, "jsonl")
    assert read_splits(RTE, folder).train.column_names == ["sentence1", "sentence2", "label"]


def test_shards_are_one_split(tmp_path):
    folder = save(tmp_path / "data", SPLITS, "parquet")
    Dataset.from_dict(ROWS).to_parquet(folder / "train-00000-of-00002.parquet")
    Dataset.from_dict(ROWS).to_parquet(folder / "train-00001-of-00002.parquet")
    (folder / "train.parquet").unlink()
    assert read_splits(RTE, folder).train["label"][:] == ROWS["label"] * 2


def test_shards_with_digests_are_one_split_too(tmp_path):
    (tmp_path / "data").mkdir()
    for shard in ("00000-of-00002-a09b74b3ef9c3b56", "00001-of-00002-0f"):
        Dataset.from_dict(ALPACA).to_parquet(tmp_path / "data" / f"train-{shard}.parquet")
    splits = read_splits(registry.get("alpaca"), tmp_path)
    assert len(splits.train) + len(splits.validation["validation"]) == 120


def test_mnli_has_two_validation_splits(tmp_path):
    rows = {"premise": ["a"], "hypothesis": ["b"], "label": [2]}
    folder = save(
        tmp_path / "data", dict.fromkeys(("train", "validation_matched", "validation_mismatched"), rows), "jsonl"
    )
    splits = read_splits(registry.get("mnli"), folder)
    assert list(splits.validation) == list(splits.test) == ["validation_matched", "validation_mismatched"]
    assert splits.notes == (
        "the test labels of mnli are hidden: test uses validation_matched and validation_mismatched",
    )


def test_a_hidden_test_split_in_a_folder_is_said_to_be_left_out(tmp_path):
    splits = read_splits(RTE, save(tmp_path / "data", {**SPLITS, "test": ROWS}, "jsonl"))
    assert splits.test is splits.validation
    assert splits.notes == (
        "the test labels of rte are hidden, and the folder's test split is not read: test uses validation",
    )


def test_test_split_is_used_where_it_has_labels_and_replaced_where_it_is_not_there(tmp_path):
    spec, rows = registry.get("wikitext2"), {"text": ["a b"]}
    with_test = read_splits(spec, save(tmp_path / "a", dict.fromkeys(("train", "validation", "test"), rows), "jsonl"))
    assert list(with_test.test) == ["test"]
    assert with_test.notes == ()
    without = read_splits(spec, save(tmp_path / "b", dict.fromkeys(("train", "validation"), rows), "jsonl"))
    assert list(without.test) == ["validation"]
    assert without.notes == ("there is no test split: test uses validation",)


ALPACA = {key: [f"{key} {index}" for index in range(60)] for key in ("instruction", "input", "output")}


def test_without_validation_split_five_percent_are_held_out(tmp_path, monkeypatch):
    spec = registry.get("alpaca")
    folder = save(tmp_path / "data", {"train": ALPACA}, "jsonl")
    splits = read_splits(spec, folder)
    train, held_out = splits.train["output"][:], splits.validation["validation"]["output"][:]
    assert len(held_out) == 3
    assert sorted(train + held_out) == sorted(ALPACA["output"])
    assert train == [row for row in ALPACA["output"] if row in set(train)], "file order"
    assert read_splits(spec, folder).validation["validation"]["output"][:] == held_out
    monkeypatch.setattr(source, "_AT_ONCE", 7)  # as of millions of rows
    again = read_splits(spec, folder)
    assert (again.train["output"][:], again.validation["validation"]["output"][:]) == (train, held_out)
    assert splits.notes[0].startswith("no validation split: 3 of 60 training rows (5%, the same for every seed)")


def test_one_file_of_any_name_is_the_training_split_if_no_other_is_needed(tmp_path):
    folder = save(tmp_path / "one", {"alpaca_data_cleaned": ALPACA}, "json")
    assert len(read_splits(registry.get("alpaca-cleaned"), folder, share=0).train) == 60
    for split in ("validation", "dev", "test"):
        with pytest.raises(UserError, match=f"no split 'train'; valid: {split}"):
            read_splits(registry.get("alpaca-cleaned"), save(tmp_path / split, {split: ALPACA}, "json"))
    with pytest.raises(UserError, match="no split 'train'; valid: mine"):
        read_splits(registry.get("wikitext2"), save(tmp_path / "mine", {"mine": {"text": ["a"]}}, "json"))


def test_a_copy_of_lambada(tmp_path):
    rows = {"text": ["a b"]}
    save(tmp_path / "plain_text", dict.fromkeys(("train", "validation", "test"), rows), "parquet")
    assert list(read_splits(registry.get("lambada"), tmp_path).test) == ["test"]


def test_nothing_is_held_out_by_request_or_where_there_is_a_validation_split(tmp_path):
    """Training needs validation rows, and is told that there are none only if there are none."""
    whole = read_splits(registry.get("alpaca"), save(tmp_path / "whole", {"train": ALPACA}, "csv"), share=0)
    both = save(tmp_path / "both", dict.fromkeys(("train", "validation"), ALPACA), "csv")
    assert not whole.validated
    assert len(whole.test["test"]) == 60
    assert read_splits(registry.get("alpaca"), both, share=0).validated
    splits = read_splits(registry.get("alpaca"), both)
    assert len(splits.train) == len(splits.validation["validation"]) == 60
    assert splits.notes == ("there is no test split: test uses validation",)


def test_one_saved_dataset_without_splits(tmp_path):
    Dataset.from_dict({key: values * 10 for key, values in ROWS.items()}).save_to_disk(tmp_path / "data")
    splits = read_splits(RTE, tmp_path / "data")
    assert (len(splits.train), len(splits.validation["validation"])) == (38, 2)
    assert "held out" in splits.notes[0]


def test_generated_rows_do_not_depend_on_anything():
    asked = []

    def generate(split, seed):
        asked.append((split, seed))
        return [{"text": f"{split} {seed}", "label": 1}]

    spec = DatasetSpec("g", "classification", ("text",), ("accuracy",), labels=("no", "yes"), generate=generate)
    splits = read_splits(spec)
    assert asked == [("train", 0), ("validation", 0), ("test", 0)]
    assert splits.test["test"].to_list() == [{"text": "test 0", "label": 1}]


# Labels


def with_labels(labels, kind="jsonl", feature=None):
    """What is read from a training split with these labels."""

    def read(tmp_path, spec=RTE):
        rows = {"sentence1": ["a"] * len(labels), "sentence2": ["b"] * len(labels), "label": labels}
        features = (
            Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": feature})
            if feature
            else None
        )
        folder = save(tmp_path / "data", {"train": rows, "validation": rows}, kind, features)
        return read_splits(spec, folder).train["label"][:]

    return read


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_labels_by_name(tmp_path, kind):
    assert with_labels(["not_entailment", "entailment", "not_entailment"], kind)(tmp_path) == [1, 0, 1]


def test_class_labels_in_another_order_go_by_name(tmp_path):
    swapped = ClassLabel(names=["not_entailment", "entailment"])
    assert with_labels([0, 1, 1], "save_to_disk", swapped)(tmp_path) == [1, 0, 0]


def test_class_labels_in_the_same_order_and_other_names_go_by_id(tmp_path):
    assert with_labels([0, 1, 1], "save_to_disk", ClassLabel(names=["yes", "no"]))(tmp_path) == [0, 1, 1]


@pytest.mark.parametrize("labels", [[False, True], [0.0, 1.0]])
def test_truth_values_and_whole_numbers_are_ids(tmp_path, labels):
    read = with_labels(labels)(tmp_path)
    assert read == [0, 1]
    assert all(type(label) is int for label in read)


def test_boolq_names_are_truth_values_in_csv(tmp_path):
    rows = {"question": ["a", "b"], "passage": ["c", "d"], "label": ["False", "True"]}
    folder = save(tmp_path / "data", {"train": rows, "validation": rows}, "csv")
    assert read_splits(registry.get("boolq"), folder).train["label"][:] == [0, 1]


def test_regression_takes_any_number(tmp_path):
    read = with_labels([0, 5])(tmp_path, registry.get("stsb"))
    assert read == [0.0, 5.0]
    assert all(type(label) is float for label in read)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            [0, 2],
            r"row 1 of split 'train' of data set 'rte' in '.*' has label 2; labels are 0 to 1: 0 entailment, 1 not_",
        ),
        ([0, -2], "has label -2; labels are 0 to 1"),
        ([-1, -1], r"the labels of split 'train' of data set 'rte' in '.*' are hidden \(-1 in row 0\)"),
        ([0.5, 1.0], "row 0 .* has label 0.5; labels are 0 to 1"),
        (["entailment", "entailed"], "row 1 .* has label 'entailed'; labels are 0 to 1"),
        (["1", "0"], "row 0 .* has label '1'; labels are 0 to 1"),
    ],
)
def test_wrong_labels(tmp_path, labels, message):
    with pytest.raises(UserError, match=message):
        with_labels(labels)(tmp_path)


def test_class_labels_of_another_data_set(tmp_path):
    three = ClassLabel(names=["a", "b", "c"])
    with pytest.raises(UserError, match="has the labels a, b, c; labels are 0 to 1"):
        with_labels([0, 1], "save_to_disk", three)(tmp_path)


def test_hidden_class_labels(tmp_path):
    with pytest.raises(UserError, match="hidden"):
        with_labels([-1, -1], "save_to_disk", ClassLabel(names=list(RTE.labels)))(tmp_path)


@pytest.mark.parametrize("labels", [["high", "low"], [1.0, float("nan")]])
def test_labels_that_are_no_numbers(tmp_path, labels):
    with pytest.raises(UserError, match=r"has label .*; labels are real numbers|without a label"):
        with_labels(labels, "parquet")(tmp_path, registry.get("stsb"))


# Folders, splits, columns


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="nowhere is not there; give a folder made by save_to_disk"):
        read_splits(RTE, tmp_path / "nowhere")


def test_a_file_for_a_folder(tmp_path):
    folder = save(tmp_path / "data", SPLITS, "jsonl")
    with pytest.raises(UserError, match=r"train\.jsonl is a file; give a folder"):
        read_splits(RTE, folder / "train.jsonl")


def test_folder_without_data(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match="holds no data"):
        read_splits(RTE, tmp_path)


@pytest.mark.parametrize("kind", ["save_to_disk", "jsonl"])
def test_missing_split(tmp_path, kind):
    folder = save(tmp_path / "data", {"train": ROWS, "validatoin": ROWS}, kind)
    with pytest.raises(
        UserError, match=r"no split 'validation'; did you mean 'validatoin'\? \(valid: train, validatoin\)"
    ):
        read_splits(RTE, folder)


def test_one_split_in_two_formats(tmp_path):
    save(tmp_path / "data", SPLITS, "jsonl")
    folder = save(tmp_path / "data", SPLITS, "csv")
    with pytest.raises(UserError, match=r"split 'train' more than once \(train.csv, train.jsonl\)"):
        read_splits(RTE, folder)


@pytest.mark.parametrize("other", ["train-00000-of-00001", "Train"])
def test_one_split_in_a_file_and_in_others(tmp_path, other):
    """The rows would be read twice, and some of them held out and trained on."""
    folder = save(tmp_path / "data", SPLITS, "csv")
    shutil.copy(folder / "train.csv", folder / f"{other}.csv")
    with pytest.raises(UserError, match=r"has split 'train' more than once"):
        read_splits(RTE, folder)


def test_empty_split(tmp_path):
    nothing = {key: values[:0] for key, values in ROWS.items()}
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": Value("int64")})
    folder = save(tmp_path / "data", {"train": ROWS, "validation": nothing}, "save_to_disk", features)
    with pytest.raises(UserError, match="empty; give it at least one row"):
        read_splits(RTE, folder)


def test_missing_texts_are_empty_and_said(tmp_path):
    rows = {**ROWS, "sentence1": ["a", None, None, "d"]}
    splits = read_splits(RTE, save(tmp_path / "data", {"train": rows, "validation": ROWS}, "jsonl"))
    assert splits.train["sentence1"][:] == ["a", "", "", "d"]
    assert splits.notes[0] == (
        f"2 rows of split 'train' of data set 'rte' in '{tmp_path / 'data'}' have no text in column 'sentence1': "
        "an empty text is used"
    )


def test_the_hub_is_asked_for_the_entrys_repository(monkeypatch):
    features = Features(
        {
            "sentence1": Value("string"),
            "sentence2": Value("string"),
            "label": ClassLabel(names=list(RTE.labels)),
            "idx": Value("int32"),
        }
    )
    made = {split: Dataset.from_dict({**rows, "idx": rows["label"]}, features) for split, rows in SPLITS.items()}
    hidden = {**ROWS, "label": [-1] * 4, "idx": ROWS["label"]}
    on_hub = DatasetDict({**made, "test": Dataset.from_dict(hidden, features)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *asked: {("nyu-mll/glue", "rte"): on_hub}[asked])
    splits = read_splits(RTE)
    assert splits.train.to_dict() == ROWS
    assert splits.notes == ("the test labels of rte are hidden: test uses validation",)
    with pytest.raises(UserError, match="the labels of split 'test' of data set 'rte' are hidden"):
        read_splits(replace(RTE, test="test"))
    with pytest.raises(UserError, match=r"no split 'tets'; did you mean 'test'\?"):
        read_splits(replace(RTE, test="tets"))


def test_entry_without_source():
    spec = DatasetSpec("mine", "classification", ("text",), ("accuracy",), labels=("no", "yes"))
    with pytest.raises(UserError, match="'mine' has no hub repository; give --dataset-saved-path"):
        read_splits(spec)
