"""Multiple choice: prompts, tokens, log-likelihoods against passes by hand, and commands from start to end."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from dataset import registry
from dataset.batching.collate import Collator
from dataset.batching.module import TextDataModule
from dataset.batching.preview import preview
from dataset.choices import place_of
from dataset.encoding.encode import Lengths, encode
from dataset.encoding.render import EXAMPLES
from dataset.reading.own import describe
from heterolora.common.errors import UserError
from model import metrics
from model.task.fine_tuning import TaskParts
from model.task.multiple_choice import MultipleChoice
from options.data import DataOptions, OwnDataOptions
from options.optimization import Optimization
from tests.mistakes import complains, refused
from tests.tiny import tiny_network, word_tokenizer
from tests.together import run_commands, together
from tests.world import metrics_of, run, write_jsonl, write_lora

TEXT = "river stone bird cloud bread wheel candle forest mirror bridge window garden rope salt copper drum"
WORDS = TEXT.split()
MMLU, HELLASWAG, ARC = (registry.get(name) for name in ("mmlu", "hellaswag", "arc_easy"))


def arc_rows(count: int, seed: int) -> list[dict[str, object]]:
    """Rows with 3 to 5 choices of 1 to 3 words. The choice that begins with `river` is right."""
    draw, made = random.Random(seed), []
    for index in range(count):
        choices = [f"{word} {' '.join(draw.choices(WORDS, k=2))}"[: draw.randrange(5, 25)].strip()
                   for word in draw.sample(WORDS[1:], 3 + index % 3)]  # fmt: skip
        keys = ("12345" if index % 2 else "ABCDE")[: len(choices)]
        right = draw.randrange(len(choices))
        choices[right] = " ".join(["river", *draw.choices(WORDS, k=draw.randrange(2))])
        question = f"which {draw.choice(WORDS)} goes with {draw.choice(WORDS)} ?"
        made.append({"id": str(index), "question": question, "choices": {"text": choices, "label": list(keys)},
                     "answerKey": keys[right]})  # fmt: skip
    return made


def write_hub(folder: Path, configuration: str, splits: dict[str, list[dict[str, object]]]) -> Path:
    """A copy of a repository of the hub."""
    (folder / configuration).mkdir(parents=True)
    (folder / "README.md").write_text("about the data\n")
    (folder / "dataset_infos.json").write_text("{}")
    for split, rows in splits.items():
        Dataset.from_list(rows).to_parquet(folder / configuration / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def arc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": arc_rows(40, 1), "validation": arc_rows(5, 2), "test": arc_rows(7, 3)}
    return write_hub(tmp_path_factory.mktemp("arc"), "ARC-Easy", splits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = word_tokenizer([TEXT, "Question: which goes with ? Answer: Which A. B. C. D. A B C D"])
    limits = {"vocab_size": len(tokenizer), "max_position_embeddings": 256}
    tiny_network("opt", "causal_language_modeling", **limits).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- texts


def test_prompts_of_the_entries() -> None:
    row = {"question": "What? ", "choices": ["x", "y z", "1", "2"], "subject": "high_school_physics", "answer": 1}
    assert MMLU.choices.header(row) == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
    )
    assert MMLU.choices.header({**row, "subject": ""}).endswith("questions (with answers).\n\n")
    assert MMLU.prompt(row) == "What?\nA. x\nB. y z\nC. 1\nD. 2\nAnswer:"
    assert MMLU.choices.texts(row) == ("A", "B", "C", "D")
    scene = {"activity_label": "Cutting", "ctx_a": "A [title] man.", "ctx_b": "he [step] cuts", "endings": ["[x] a  b"]}
    assert HELLASWAG.prompt(scene) == "Cutting: A. man. He cuts"
    assert HELLASWAG.choices.texts(scene) == [" a b"]
    assert ARC.prompt(row) == "Question: What? \nAnswer:"


@pytest.mark.parametrize(
    ("label", "keys", "place"),
    [
        *((1, None, 1), ("1", None, 1), (1.0, None, 1), ("b", None, 1), ("c d", None, 2), ("C", None, 2)),
        *(("B", ["B", "A"], 0), (4, ["3", "4"], 1), ("C", ["A", "B"], None)),
        *((label, None, None) for label in (3, -1, 0.5, "D", True, math.nan, None, "")),
    ],
)
def test_the_place_of_the_right_choice(label, keys, place) -> None:
    assert place_of(label, ["a", "b", "c d"], keys) == place


# ---- tokens

A, B, C, D, E = range(6, 11)
BOS, EOS = 0, 2


def encoded(rows: list[dict[str, object]], limit: int, style: str = "decoder", examples: tuple[str, ...] = ()):
    """Rows of ARC whose prompt is the question alone."""
    spec = replace(ARC, prompt=lambda row: row["question"])
    made = [
        {"question": prompt, "choices": json.dumps({"text": texts, "label": ["A", "B", "C"]}), "answerKey": key,
         EXAMPLES: json.dumps(examples)} for prompt, texts, key in rows
    ]  # fmt: skip
    return encode(Dataset.from_list(made), spec, word_tokenizer(["a b c d e"], style), Lengths(limit, 0)).to_list()


def test_prompt_and_choices() -> None:
    (row, other) = encoded([("a b ", ["c", "d e"], "B"), ("a", ["b", "c", "d d"], "A")], 9)
    assert row == {
        "input_ids": [BOS, A, B, D, E], "context": 3, "length": 5, "choices": [[C], [D, E]], "answer": 1,
        "characters": [1, 3], "shots": 0, "cut": False,
    }  # fmt: skip
    assert other["choices"] == [[B], [C], [D, D]]
    assert encoded([("", ["c", "d"], "A")], 9, "plain")[0]["input_ids"] == [EOS, C], "something to follow"


@pytest.mark.parametrize(
    ("limit", "ids", "shots", "cut"),
    [
        (12, [BOS, A, B, C, D, A, B, C], 2, False),
        (8, [BOS, A, B, A, B, C], 1, False),
        (5, [BOS, A, B, C], 0, False),
        (4, [BOS, B, C], 0, True),
        (3, [BOS, B, C], 0, True),
    ],
)
def test_examples_are_dropped_whole_before_the_question_is_cut(limit: int, ids, shots: int, cut: bool) -> None:
    """The longest choice has two tokens."""
    (row,) = encoded([("a b", ["c", "d e"], "A")], limit, examples=("a b", "c d"))
    assert (row["input_ids"], row["shots"], row["cut"]) == (ids, shots, cut)


def test_a_batch_has_a_sequence_for_each_choice() -> None:
    rows = encoded([("a b", ["c", "d e"], "B"), ("a", ["b", "c", "d"], "A")], 9)
    listed = [{**row, "index": index, "weight": 1.0} for index, row in enumerate(rows)]
    tokenizer = word_tokenizer(["a b c d e"])
    batch = Collator(tokenizer, choices=True)(listed)
    assert [row[row >= 0].tolist() for row in batch["labels"]] == [[C], [D, E], [B], [C], [D]]
    assert (batch["choices"].tolist(), batch["answer"].tolist()) == ([2, 3], [1, 0])
    assert batch["characters"].tolist() == [[1, 3, 1], [1, 1, 1]]
    trained = Collator(tokenizer)(listed)
    assert [row[row >= 0].tolist() for row in trained["labels"]] == [[D, E], [B]], "the right choices"


# ---- examples


def mmlu_row(subject: str, number: int) -> dict[str, object]:
    return {"question": f"q{number}", "subject": subject, "choices": ["a", "b", "c", "d"], "answer": number % 4}


def test_examples_are_those_of_the_subject(tmp_path: Path) -> None:
    splits = {
        "auxiliary_train": [mmlu_row("", 1), mmlu_row("", 2)],
        "dev": [mmlu_row(subject, number) for number in range(6) for subject in ("one", "two")],
        "validation": [mmlu_row("two", 9)],
        "test": [mmlu_row("one", 1), mmlu_row("two", 8), mmlu_row("three", 8)],
    }
    options = DataOptions(2, few_shot=2, dataset_saved_path=write_hub(tmp_path, "all", splits))
    data = TextDataModule(MMLU, options)
    data.attach(word_tokenizer(["a"], "plain"), 4096)
    assert data.limits.max_token_len == 2048
    found = [[text[:2] + text[-1] for text in json.loads(each)] for each in data.splits.test["test"][EXAMPLES]]
    assert found == [["q0A", "q2C"], ["q0A", "q1B"], []], "a row is no example of itself"
    assert EXAMPLES not in data.splits.train.column_names
    assert data.lost_examples(data.splits.test["test"]) == 1
    assert "examples: 2 before each measured question; 1 test rows have fewer (as many as " in preview(
        data, data.splits.train, "x"
    )
    zero_shot = TextDataModule(MMLU, replace(options, few_shot=0))
    assert data.digests != zero_shot.digests
    assert data.digests[0] == zero_shot.digests[0], "training rows have no examples"


def test_examples_from_the_training_rows(arc: Path) -> None:
    data = TextDataModule(ARC, DataOptions(2, few_shot=1, dataset_saved_path=arc))
    (first, *rest) = [json.loads(each) for each in data.splits.test["test"][EXAMPLES]]
    assert first == rest[0] == rest[-1]
    assert first[0].startswith("Question: which ")
    assert "\nAnswer: river" in first[0]


# ---- the metric


def log_likelihoods(network, prompt: list[int], choices: list[list[int]]) -> list[float]:
    """The log-likelihood of each choice, with a pass of its own for each."""
    found = []
    for choice in choices:
        ids = torch.tensor([prompt + choice])
        with torch.no_grad():
            logs = network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        found.append(float(logs.gather(-1, ids[0, 1:].unsqueeze(-1))[len(prompt) - 1 :].sum()))
    return found


def asked(row: dict[str, object]) -> str:
    return f"Question: {row['question']}\nAnswer:"


def expected_of(folder: Path, rows: list[dict[str, object]], example: str = "") -> tuple[dict[str, float], list]:
    """Metrics, and loss, tokens and correctness of each row."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    of_rows, normalised = [], 0
    for row in rows:
        texts, right = row["choices"]["text"], row["choices"]["label"].index(row["answerKey"])
        prompt = tokenizer(example + asked(row)).input_ids
        choices = [tokenizer(f"{example}{asked(row)} {text}").input_ids[len(prompt) :] for text in texts]
        scores, counts = log_likelihoods(network, prompt, choices), [*map(len, choices)]
        by_length = [score / len(text) for score, text in zip(scores, texts, strict=True)]
        of_rows.append((-scores[right], counts[right], int(scores.index(max(scores)) == right)))
        normalised += by_length.index(max(by_length)) == right
    loss = sum(row[0] for row in of_rows) / sum(row[1] for row in of_rows)
    hits = sum(row[2] for row in of_rows)
    return {"loss": loss, "accuracy": hits / len(rows), "accuracy_norm": normalised / len(rows)}, of_rows


def rows_csv(folder: Path, split: str) -> list[tuple[float, int, int]]:
    with (folder / "rows.csv").open() as file:
        found = [row for row in csv.DictReader(file) if row["split"] == split]
    assert [int(row["index"]) for row in found] == list(range(len(found)))
    return [(float(row["loss"]), int(row["count"]), int(row["correct"])) for row in found]


def check(folder: Path, wanted: dict[str, tuple[dict[str, float], list]]) -> None:
    for split, (figures, of_rows) in wanted.items():
        assert metrics_of(folder)[split] == pytest.approx(figures, abs=1e-5)
        for found, expected in zip(rows_csv(folder, split), of_rows, strict=True):
            assert found == pytest.approx(expected, abs=1e-4)


def test_metrics_are_those_of_passes_by_hand(capfd, model: Path, arc: Path, tmp_path: Path) -> None:
    """Of all rows in one process, and of some with an example in two, one of which has a filler row."""
    base = ("test", "opt_lora", "arc_easy", "--load", model, "--dataset-saved-path", arc, "--row-results")
    base = (*base, "--project-dir", tmp_path, "--project")
    validation, test = arc_rows(5, 2), arc_rows(7, 3)
    assert run(*base, "one", "--batch-size", 3) == 0
    out = capfd.readouterr().out
    assert "multiple choice from 'question' and 'choices'; 'answerKey' says which choice is right" in out
    wanted = {"validation": expected_of(model, validation), "test": expected_of(model, test)}
    check(tmp_path / "one", wanted)
    assert wanted["test"][0]["accuracy"] != wanted["test"][0]["accuracy_norm"]
    two = ("--batch-size", 2, "--num-devices", 2, "--limit-test-batches", 1, "--few-shot", 1)
    together(2, run_commands, [(*base, "two", *two)])
    first = arc_rows(40, 1)[0]
    right = first["choices"]["text"][first["choices"]["label"].index(first["answerKey"])]
    example = f"{asked(first)} {right}\n\n"
    check(tmp_path / "two", {
        "validation": expected_of(model, validation, example), "test": expected_of(model, test[:4], example),
    })  # fmt: skip


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_scores(model: Path, side: str) -> None:
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    rows = [
        {**row, "index": 0, "weight": 1.0}
        for row in encoded([("a b", ["c", "d e a b"], "A"), ("c", ["b", "a"], "B")], 9)
    ]
    parts = TaskParts(network, None, ARC, ("validation",), (), Optimization(), record=None, batches_per_epoch=len)
    task = MultipleChoice(parts)
    batch = Collator(tokenizer, choices=True)(rows)
    if side == "left":
        width = batch["attention_mask"].sum(-1).tolist()
        for key in ("input_ids", "attention_mask", "labels"):
            batch[key] = torch.stack([row.roll(-size) for row, size in zip(batch[key], width, strict=True)])
    with torch.no_grad():
        scores = task.loss(batch).logits
    assert scores.isfinite().all()
    expected = [log_likelihoods(network, row["input_ids"][: row["context"]], row["choices"]) for row in rows]
    torch.testing.assert_close(scores, torch.tensor(expected))


def test_training_makes_the_right_choice_likely(model: Path, arc: Path, tmp_path: Path) -> None:
    """`river` begins each right choice. `test` takes the number of examples from the checkpoint."""
    lora = write_lora(tmp_path / "lora.toml", "q_proj", "v_proj", "w1", "w2")
    data = ("arc_easy", "--dataset-saved-path", arc, "--few-shot", 1, "--project-dir", tmp_path)
    start = ("train", "opt_lora", *data, "--load", model, "--lora-config", lora, "--max-epochs", 2)
    assert run(*start, "--learning-rate", 0.02, "--batch-size", 4, "--project", "run") == 0
    after = metrics_of(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert run("test", "--load", checkpoint, "--batch-size", 4, "--project-dir", tmp_path, "--project", "again") == 0
    assert metrics_of(tmp_path / "again") == after
    before, _ = expected_of(model, arc_rows(7, 3))
    assert after["test"]["loss"] < before["loss"] - 0.5
    assert after["validation"]["accuracy"] >= 0.8


def test_sums_of_batches_with_uneven_rows() -> None:
    made = metrics.build(("accuracy", "accuracy_norm"), 1, choices=True)
    for picks, right in (([[0, 1], [2, 2], [1, 0]], [0, 2, 0]), ([[3, 3]], [3])):
        made.update(torch.tensor(picks), torch.tensor(right))
    assert {name: float(value) for name, value in made.compute().items()} == {"accuracy": 0.75, "accuracy_norm": 0.75}


# ---- own data


def quiz(count: int) -> list[dict[str, object]]:
    return [
        {
            "q": row["question"],
            "options": row["choices"]["text"],
            "right": row["choices"]["label"].index(row["answerKey"]),
        }
        for row in arc_rows(count, 5)
    ]


ROLES = {"prompt_column": "q", "choices_column": "options", "label_column": "right"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv"])
def test_own_data(tmp_path: Path, suffix: str) -> None:
    path, rows = tmp_path / f"quiz.{suffix}", quiz(8)
    if suffix == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        Dataset.from_list([{**row, "options": json.dumps(row["options"])} for row in rows]).to_csv(path)
    spec, own = describe(str(path), OwnDataOptions(**ROLES), None, cache=False)
    assert (spec.metrics, own.choices_column, own.regression) == (("accuracy", "accuracy_norm"), "options", None)
    data = TextDataModule(spec, DataOptions(2, validation_share=0.0, few_shot=1))
    tokenizer = word_tokenizer([TEXT])
    data.attach(tokenizer, 256)
    (row, *_) = data.encoded(data.splits.test["test"])
    assert row["answer"] == rows[0]["right"]
    assert [tokenizer.decode(each) for each in row["choices"]] == [
        tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) for text in rows[0]["options"]
    ]
    shots = [json.loads(each)[0] for each in data.splits.test["test"][EXAMPLES]]
    assert shots[0] == f"{rows[1]['q']} {rows[1]['options'][rows[1]['right']]}", "all rows are measured"
    assert shots[1].startswith(rows[0]["q"])


def test_own_data_from_the_command_line(capfd, model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "quiz.jsonl", quiz(8))
    roles = ("--prompt-column", "q", "--choices-column", "options", "--label-column", "right")
    base = ("test", "opt_lora", tmp_path / "quiz.jsonl", "--load", model, *roles, "--project-dir", tmp_path)
    assert run(*base, "--project", "run") == 0
    out = capfd.readouterr().out
    assert "data: quiz: multiple choice from 'q' and 'options'; 'right' says which choice is right" in out
    assert "rows: 8 test; no test row is truncated" in out
    (choices,) = re.findall(r"^  choices: .*", out, re.MULTILINE)
    assert choices.count("'") >= 4
    assert "[[" not in choices, "only the right one, above, has a loss"
    assert metrics_of(tmp_path / "run")["test"].keys() == {"loss", "accuracy", "accuracy_norm"}


# ---- mistakes

GOOD = {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"}


@pytest.mark.parametrize(
    ("change", "found", "advice"),
    [
        ({"answerKey": "C"}, "row 1 of data set 'arc_easy' has 'C' in column 'answerKey'", "one of A, B"),
        ({"answerKey": None}, "row 1 of data set 'arc_easy' has no value in column 'answerKey'", "one of A, B"),
        ({"choices": {"text": ["b"], "label": ["A"]}}, "'choices' of data set 'arc_easy' returns ['b'] for", "two"),
        ({"choices": {"text": ["b", " "], "label": ["A", "B"]}}, "choice 2 of row 1 of data set 'arc_easy'", "text"),
        ({"choices": {"txt": ["b"]}}, "'choices' of data set 'arc_easy' fails for row 1 (KeyError: 'text')", "correct"),
        ({"choices": {"text": ["b\ud83d", "c"], "label": ["A", "B"]}},
         r"column 'choices' of row 1 of data set 'arc_easy' holds '\ud83d', which is half", "the whole character"),
        ({"choices": "b or c"}, "column 'choices' of row 1 of data set 'arc_easy' is no list", "JSON"),
    ],
)  # fmt: skip
def test_mistakes_in_rows(tmp_path: Path, change, found: str, advice: str) -> None:
    for split in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [GOOD, {**GOOD, **change}])
    with refused(found, advice):
        TextDataModule(ARC, DataOptions(2, dataset_saved_path=tmp_path))


def test_mistakes_in_splits_and_columns(tmp_path: Path) -> None:
    folder = write_hub(
        tmp_path, "all", {split: [mmlu_row("", 1)] for split in ("auxiliary_train", "validation", "test")}
    )
    with pytest.raises(UserError, match="data set 'mmlu' has no split 'dev'"):
        TextDataModule(MMLU, DataOptions(2, few_shot=5, dataset_saved_path=folder))
    TextDataModule(MMLU, DataOptions(2, dataset_saved_path=folder))
    with pytest.raises(UserError, match="no split 'train'"):
        TextDataModule(ARC, DataOptions(2, dataset_saved_path=folder / "all"))
    with pytest.raises(UserError, match="has no column 'activity_label'"):
        TextDataModule(
            replace(HELLASWAG, train="test", validation=("test",)), DataOptions(2, dataset_saved_path=folder / "all")
        )


@pytest.mark.parametrize(
    ("roles", "found", "expected"),
    [
        (("--choices-column", "options"), "needs --prompt-column and --label-column", "options (lists)"),
        (("--choices-column", "option", "--prompt-column", "q", "--label-column", "right"), "no column 'option'",
         "did you mean 'options'?"),
        (("--choices-column", "q", "--prompt-column", "q", "--label-column", "right"), "name a column twice", "three"),
        (("--choices-column", "options", "--response-column", "q"), "are both given", "questions with choices"),
        (("--choices-column", "options", "--prompt-column", "q", "--label-column", "right", "--task", "summarization"),
         "--task summarization does not fit", "name others, or leave --task out"),
    ],
)  # fmt: skip
def test_mistakes_in_options(capfd, model: Path, tmp_path: Path, roles, found: str, expected: str) -> None:
    write_jsonl(tmp_path / "quiz.jsonl", quiz(4))
    complains(capfd, found, expected, "train", "opt_lora", tmp_path / "quiz.jsonl", "--load", model, *roles)


# ---- lm-evaluation-harness


def scenes(count: int, seed: int) -> list[dict[str, object]]:
    """Rows of HellaSwag."""
    return [
        {"activity_label": "Which", "ctx_a": "A bird.", "ctx_b": f"[step] which {row['question']}",
         "endings": [f"[title] {text}" for text in (row["choices"]["text"] * 2)[:4]], "label": str(index % 4)}
        for index, row in enumerate(arc_rows(count, seed))
    ]  # fmt: skip


def exam(count: int, seed: int) -> list[dict[str, object]]:
    """Rows of MMLU of one subject."""
    return [
        {"question": row["question"], "subject": "anatomy", "choices": (row["choices"]["text"] * 2)[:4],
         "answer": index % 4} for index, row in enumerate(arc_rows(count, seed))
    ]  # fmt: skip


HARNESS = {  # data set -> configuration, its rows by split, task file of the harness, number of examples
    "mmlu": ("all", {"auxiliary_train": exam(2, 1), "dev": exam(4, 2), "validation": exam(1, 3), "test": exam(9, 4)},
             ("mmlu/default/_default_template_yaml", "mmlu/default/mmlu_anatomy.yaml"), 2),
    "hellaswag": ("data", {"train": scenes(2, 1), "validation": scenes(9, 2)}, ("hellaswag/hellaswag.yaml",), 0),
    "arc_easy": ("ARC-Easy", {"train": arc_rows(2, 1), "validation": arc_rows(1, 2), "test": arc_rows(9, 3)},
                 ("arc/arc_easy.yaml",), 0),
}  # fmt: skip


def write_task(folder: Path, data: Path, files: tuple[str, ...]) -> str:
    """The task of the harness on local files. Returns its name."""
    tasks = Path(importlib.util.find_spec("lm_eval").origin).with_name("tasks")
    text = "".join((tasks / name).read_text() for name in files)
    text = re.sub(r'^"?(dataset_path|dataset_name|task|tag|task_alias|include)"?:.*\n(  - .*\n)*', "", text, flags=re.M)
    paths = {path.name.split("-")[0]: str(path) for path in data.rglob("*.parquet")}
    own = {"task": "local", "dataset_path": "parquet", "dataset_kwargs": {"data_files": paths}}
    (folder / "local.yaml").write_text(text + "".join(f"{name}: {json.dumps(value)}\n" for name, value in own.items()))
    if (utils := (tasks / files[0]).with_name("utils.py")).is_file():
        shutil.copyfile(utils, folder / "utils.py")
    return str(folder / "local.yaml")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
@pytest.mark.parametrize("name", HARNESS)
def test_the_harness_gives_the_same_scores(model: Path, tmp_path: Path, name: str) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    configuration, splits, files, shots = HARNESS[name]
    data = write_hub(tmp_path / "data", configuration, splits)
    arguments = ("--load", model, "--dataset-saved-path", data, "--project-dir", tmp_path, "--project", "run")
    assert run("test", "opt_lora", name, *arguments, "--row-results", "--few-shot", shots) == 0
    found = simple_evaluate(
        model="hf",
        model_args=f"pretrained={model},dtype=float32",
        tasks=[write_task(tmp_path, data, files)],
        num_fewshot=shots,
        device="cpu",
        task_manager=TaskManager(include_defaults=False),
    )
    ours, theirs = metrics_of(tmp_path / "run"), found["results"]["local"]
    split = "test" if "test" in splits else "validation"
    assert ours[split]["accuracy"] == pytest.approx(theirs["acc,none"])
    assert ours[split].get("accuracy_norm") == pytest.approx(theirs.get("acc_norm,none"))
    samples = sorted(found["samples"]["local"], key=lambda sample: sample["doc_id"])
    losses = [-float(sample["filtered_resps"][int(sample["target"])][0]) for sample in samples]
    assert [row[0] for row in rows_csv(tmp_path / "run", split)] == pytest.approx(losses, abs=1e-4)
