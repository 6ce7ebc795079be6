"""`predict`: what a trained model says about new rows, from the command line to the file."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from model.task.classification import Classification
from tests.mistakes import complains
from tests.test_peft_in import trained_by_peft
from tests.world import World, instruction_folder, model_folder, run, run_apart, sentences, summary_folder, write_jsonl
from tools import export

TEMPLATE = (
    "{% for m in messages %}{{ '<s> ' + m['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s> ' }}{% endif %}"
)


def predicted(*arguments: object, expected: int = 0) -> None:
    assert run("predict", *arguments) == expected


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def merged(result: Path, folder: Path) -> Path:
    export.main([str(result), "--format", "merged", "--output", str(folder)])
    return folder


def write_csv(path: Path, header: str, rows: Sequence[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(world: World) -> Path:
    """A run on an entry, SST-2."""
    assert run(*world.training("--max-steps", 12, "--max-epochs", 2, "--project", "to-predict")) == 0
    return world.runs / "to-predict"


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [str(row["sentence"]) for row in sentences(23, seed=9)]


@pytest.fixture(scope="module")
def new(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [f"{number:03},{text}" for number, text in enumerate(texts)]
    return write_csv(tmp_path_factory.mktemp("new") / "new.csv", "id,sentence", rows)


@pytest.fixture(scope="module")
def instructed(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on own data of prompts and responses, whose file is gone."""
    folder = tmp_path_factory.mktemp("instructions")
    rows = [{"prompt": row["sentence"], "response": str(row["sentence"])[2:]} for row in sentences(40, seed=3)]
    write_jsonl(folder / "train.jsonl", rows)
    data = ("train", "opt_lora", folder / "train.jsonl", "--load", world.opt, "--max-token-len", 48)
    more = ("--learning-rate", 0.02, "--batch-size", 4, "--max-epochs", 8, "--project-dir", world.runs)
    assert run(*data, *more, "--project", "instructed") == 0
    (folder / "train.jsonl").unlink()
    return world.runs / "instructed"


class TestClassification:
    def test_as_the_pipeline_of_the_merged_model(
        self, trained: Path, new: Path, texts: list[str], tmp_path: Path
    ) -> None:
        predicted("--load", trained, "--dataset", new, "--output", tmp_path / "out.csv", "--probabilities")
        rows = read_csv(tmp_path / "out.csv")
        assert next(list(row) for row in rows) == [
            "id", "sentence", "label", "probability", "probability_negative", "probability_positive",
        ]  # fmt: skip
        assert [row["id"] for row in rows] == [f"{number:03}" for number in range(len(texts))]
        theirs = pipeline("text-classification", model=str(merged(trained, tmp_path / "merged")), top_k=None)(texts)
        assert len({row["label"] for row in rows}) == 2
        for row, found in zip(rows, theirs, strict=True):
            scores = {each["label"]: each["score"] for each in found}
            assert row["label"] == max(scores, key=lambda name: scores[name])
            for name, score in scores.items():
                assert float(row[f"probability_{name}"]) == pytest.approx(score, abs=1e-5)
            assert float(row["probability"]) == max(float(row[f"probability_{name}"]) for name in scores)

    def test_a_checkpoint_an_adapter_and_a_merged_model_say_the_same(
        self, trained: Path, new: Path, tmp_path: Path
    ) -> None:
        plain = merged(trained, tmp_path / "merged")
        loads = (trained, trained / "checkpoints" / "best.ckpt", trained / "adapter")
        commands = [("--load", load) for load in loads]
        commands += [("--model", plain, "--text-columns", "sentence")]
        commands += [("--model", "opt_lora", "--load", plain, "--text-columns", "sentence")]
        found = []
        for number, command in enumerate(commands):
            predicted(*command, "--dataset", new, "--output", tmp_path / f"{number}.jsonl")
            found.append(read_jsonl(tmp_path / f"{number}.jsonl"))
        for other in found[1:]:
            for one, two in zip(found[0], other, strict=True):
                assert two["label"] == one["label"]
                assert two["probability"] == pytest.approx(one["probability"], abs=1e-5)

    def test_the_rows_of_test_have_the_same_probabilities(self, trained: Path, world: World, tmp_path: Path) -> None:
        place = ("--project-dir", tmp_path, "--project", "measured")
        assert run("test", "--load", trained, "--row-results", *place) == 0
        measured = [row for row in read_csv(tmp_path / "measured" / "rows.csv") if row["split"] == "validation"]
        predicted("--load", trained, "--dataset", world.sst2 / "validation.jsonl", "--output", tmp_path / "out.jsonl")
        for row, other in zip(measured, read_jsonl(tmp_path / "out.jsonl"), strict=True):
            assert ("negative", "positive")[int(row["predicted"])] == other["label"]
            assert float(row["probability"]) == pytest.approx(other["probability"], abs=1e-5)

    def test_an_adapter_of_another_program(self, world: World, texts: list[str], tmp_path: Path) -> None:
        """It records neither a task's columns nor names of classes."""
        theirs = trained_by_peft(world.opt, tmp_path / "adapter").eval()
        new = write_csv(tmp_path / "new.csv", "id,review", [f"7,{text}" for text in texts])
        given = ("--load", tmp_path / "adapter", "--dataset", new)
        predicted(*given, "--labels", "no,yes", "--output", tmp_path / "named.csv", "--text-columns", "review")
        tokenizer = AutoTokenizer.from_pretrained(world.opt)
        for row in read_csv(tmp_path / "named.csv"):
            with torch.no_grad():
                scores = theirs(**tokenizer(row["review"], return_tensors="pt")).logits[0].softmax(-1)
            assert row["label"] == ("no", "yes")[int(scores.argmax())]
            assert float(row["probability"]) == pytest.approx(float(scores.max()), abs=1e-5)

    def test_a_model_that_is_trained_completely(
        self, world: World, texts: list[str], new: Path, tmp_path: Path
    ) -> None:
        data = ("sst2", "--dataset-saved-path", world.sst2, "--max-steps", 3, "--learning-rate", 1e-3)
        assert run("train", world.opt, *data, "--project-dir", tmp_path, "--project", "run") == 0
        predicted("--load", tmp_path / "run", "--dataset", new, "--output", tmp_path / "out.csv")
        theirs = pipeline("text-classification", model=str(merged(tmp_path / "run", tmp_path / "merged")))(texts)
        for row, found in zip(read_csv(tmp_path / "out.csv"), theirs, strict=True):
            assert row["label"] == found["label"]
            assert float(row["probability"]) == pytest.approx(found["score"], abs=1e-5)

    def test_columns_of_other_names(self, trained: Path, texts: list[str], new: Path, tmp_path: Path) -> None:
        write_jsonl(tmp_path / "new.jsonl", [{"review": text, "label": {"gold": [1]}} for text in texts])
        predicted("--load", trained, "--dataset", new, "--output", tmp_path / "one.jsonl")
        given = ("--dataset", tmp_path / "new.jsonl", "--text-columns", "review", "--output", tmp_path / "two.jsonl")
        predicted("--load", trained, *given)
        one, two = read_jsonl(tmp_path / "one.jsonl"), read_jsonl(tmp_path / "two.jsonl")
        assert list(two[0]) == ["review", "input_label", "label", "probability"]
        assert two[0]["input_label"] == {"gold": [1]}
        assert [row["label"] for row in two] == [row["label"] for row in one]

    def test_texts_to_standard_output(self, trained: Path, texts: list[str], new: Path, tmp_path: Path, capsys) -> None:
        predicted("--load", trained, "--dataset", new, "--output", tmp_path / "out.csv")
        capsys.readouterr()
        predicted("--load", trained, "--text", texts[0], "--text", texts[1])
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["input"] for row in said] == texts[:2]
        for row, other in zip(said, read_csv(tmp_path / "out.csv"), strict=False):
            assert row["label"] == other["label"]
            assert row["probability"] == pytest.approx(float(other["probability"]), abs=1e-5)

    def test_parquet(self, trained: Path, texts: list[str], tmp_path: Path) -> None:
        table = pa.table({"sentence": texts, "day": pa.array([1] * len(texts), pa.date32()), "n": [None, *texts[1:]]})
        parquet.write_table(table, tmp_path / "new.parquet")
        given = ("--dataset", tmp_path / "new.parquet", "--output", tmp_path / "out.parquet", "--batch-size", 3)
        predicted("--load", trained, *given)
        found = parquet.read_table(tmp_path / "out.parquet")
        assert found.select(["sentence", "day", "n"]).equals(table)
        assert found["probability"].type == pa.float64()
        assert not [path for path in tmp_path.iterdir() if "partial" in path.name]

    def test_a_row_without_text(self, trained: Path, tmp_path: Path, capsys) -> None:
        write_jsonl(tmp_path / "new.jsonl", [{"sentence": None, "n": 1}, {"sentence": "a good film"}])
        predicted("--load", trained, "--dataset", tmp_path / "new.jsonl", "--output", tmp_path / "out.jsonl")
        assert "1 rows of data set 'new' have no text in column 'sentence'" in capsys.readouterr().out
        assert [row["sentence"] for row in read_jsonl(tmp_path / "out.jsonl")] == [None, "a good film"]

    def test_own_data_whose_file_is_gone(self, world: World, texts: list[str], tmp_path: Path) -> None:
        rows = [f"{row['sentence']},{['no', 'yes'][row['label']]}" for row in sentences(40, seed=1)]
        data = write_csv(tmp_path / "reviews.csv", "review,verdict", rows)
        named = ("--text-columns", "review", "--label-column", "verdict", "--project-dir", tmp_path, "--project", "run")
        given = ("--load", world.opt, "--lora-config", world.lora, "--max-steps", 2)
        assert run("train", "opt_lora", data, *given, *named) == 0
        data.unlink()
        new = write_csv(tmp_path / "new.csv", "review", texts)
        predicted("--load", tmp_path / "run", "--dataset", new, "--output", tmp_path / "out.csv")
        assert {row["label"] for row in read_csv(tmp_path / "out.csv")} <= {"no", "yes"}
        assert [row["review"] for row in read_csv(tmp_path / "out.csv")] == texts

    def test_regression(self, world: World, texts: list[str], tmp_path: Path) -> None:
        rows = [f"{row['sentence']},{3.5 * row['label'] + 0.25}" for row in sentences(40, seed=1)]
        data = write_csv(tmp_path / "stars.csv", "text,label", rows)
        given = ("--load", world.opt, "--lora-config", world.lora, "--max-steps", 3)
        assert run("train", "opt_lora", data, *given, "--project-dir", tmp_path, "--project", "run") == 0
        new = write_csv(tmp_path / "new.csv", "text", texts)
        predicted("--load", tmp_path / "run", "--dataset", new, "--output", tmp_path / "out.csv")
        folder = merged(tmp_path / "run", tmp_path / "merged")
        values = [float(row["value"]) for row in read_csv(tmp_path / "out.csv")]
        assert min(values) < 0.9 or max(values) > 1.1  # not what a sigmoid gives
        theirs = pipeline("text-classification", model=str(folder))(texts)
        assert values == pytest.approx([found["score"] for found in theirs], abs=1e-5)
        predicted("--model", folder, "--dataset", new, "--output", tmp_path / "same.csv")
        assert [float(row["value"]) for row in read_csv(tmp_path / "same.csv")] == pytest.approx(values, abs=1e-5)


class TestGeneration:
    def test_as_transformers_generates_with_the_merged_model(
        self, instructed: Path, texts: list[str], tmp_path: Path
    ) -> None:
        write_jsonl(tmp_path / "new.jsonl", [{"prompt": text} for text in texts])
        given = ("--load", instructed, "--dataset", tmp_path / "new.jsonl", "--output", tmp_path / "out.jsonl")
        predicted(*given, "--max-new-tokens", 7)
        rows = read_jsonl(tmp_path / "out.jsonl")
        assert [row["prompt"] for row in rows] == texts
        assert len({row["text"] for row in rows}) > 1
        theirs = continuations(merged(instructed, tmp_path / "merged"), [f"{text}\n" for text in texts], 7)
        assert [row["text"] for row in rows] == [text.strip() for text in theirs]
        predicted(*given, "--max-new-tokens", 7, "--num-beams", 3, "--overwrite")
        theirs = continuations(tmp_path / "merged", [f"{text}\n" for text in texts], 7, num_beams=3)
        assert [row["text"] for row in read_jsonl(tmp_path / "out.jsonl")] == [text.strip() for text in theirs]

    def test_text_that_is_drawn(self, instructed: Path, texts: list[str], tmp_path: Path) -> None:
        write_jsonl(tmp_path / "new.jsonl", [{"prompt": text} for text in texts])
        given = ("--load", instructed, "--dataset", tmp_path / "new.jsonl", "--max-new-tokens", 7, "--overwrite")
        drawn = []
        for more in (("--seed", 1), ("--seed", 1), ("--seed", 2), ("--seed", 1, "--top-p", 1e-6)):
            predicted(*given, "--output", tmp_path / "out.jsonl", "--temperature", 1.5, *more)
            drawn.append(read_jsonl(tmp_path / "out.jsonl"))
        predicted(*given, "--output", tmp_path / "out.jsonl")
        assert drawn[0] == drawn[1] != drawn[2]
        assert drawn[3] == read_jsonl(tmp_path / "out.jsonl")  # the most likely token alone is left

    def test_instructions_of_an_entry(self, world: World, tmp_path: Path, capsys) -> None:
        data = ("alpaca", "--dataset-saved-path", instruction_folder(tmp_path / "alpaca", 12), "--load", world.opt)
        shared = ("--project-dir", tmp_path, "--project", "run", "--max-steps", 1, "--max-token-len", 60)
        assert run("train", "opt_lora", *data, *shared) == 0
        write_jsonl(tmp_path / "new.jsonl", [{"instruction": "a film", "input": ""}])
        given = ("--load", tmp_path / "run", "--max-new-tokens", 5)
        predicted(*given, "--dataset", tmp_path / "new.jsonl", "--output", tmp_path / "out.jsonl")
        (row,) = read_jsonl(tmp_path / "out.jsonl")
        capsys.readouterr()
        predicted(*given, "--text", "a film")
        assert json.loads(capsys.readouterr().out)["text"] == row["text"]

    def test_summaries_are_those_that_test_measures(self, world: World, tmp_path: Path) -> None:
        data = ("xsum", "--dataset-saved-path", summary_folder(tmp_path / "data"), "--load", world.opt)
        sizes = ("--max-token-len", 24, "--max-target-len", 6, "--learning-rate", 0.03, "--max-epochs", 4)
        assert run("train", "opt_lora", *data, *sizes, "--project-dir", tmp_path, "--project", "run") == 0
        test = tmp_path / "data" / "test.jsonl"
        documents = [{"document": row["document"]} for row in read_jsonl(test)]
        write_jsonl(tmp_path / "new.jsonl", documents)
        given = ("--load", tmp_path / "run", "--output", tmp_path / "out.jsonl")
        predicted(*given, "--dataset", tmp_path / "new.jsonl")
        expected = continuations(
            merged(tmp_path / "run", tmp_path / "merged"), [f"{row['document']}\n\nTL;DR:" for row in documents], 6
        )
        assert [row["text"] for row in read_jsonl(tmp_path / "out.jsonl")] == [text.strip() for text in expected]

    def test_plain_text_goes_on(self, world: World, texts: list[str], tmp_path: Path) -> None:
        (tmp_path / "new.txt").write_text("".join(f"{text}\r\n" for text in texts))
        given = ("--model", "opt_lora", "--load", world.opt, "--max-new-tokens", 6)
        predicted(*given, "--dataset", tmp_path / "new.txt", "--output", tmp_path / "out.csv")
        rows = read_csv(tmp_path / "out.csv")
        assert [row["input_text"] for row in rows] == texts
        assert [row["text"] for row in rows] == continuations(world.opt, texts, 6)

    def test_conversations_stop_at_the_end_of_a_turn(self, tmp_path: Path, capsys) -> None:
        """The template ends a turn with a token that ends no sequence. The last answer of a row is left out."""
        base = model_folder(tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.chat_template = TEMPLATE.replace("</s>", "<sep>")
        tokenizer.save_pretrained(base)
        turns = [{"role": "user", "content": "a good film"}, {"role": "assistant", "content": "good"}]
        write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}] * 40)
        data = ("train", "opt_lora", tmp_path / "chat.jsonl", "--load", base, "--project-dir", tmp_path)
        more = ("--learning-rate", 0.05, "--max-epochs", 8, "--batch-size", 4, "--rank", 8, "--max-token-len", 40)
        assert run(*data, *more, "--project", "run") == 0
        write_jsonl(tmp_path / "new.jsonl", [{"messages": turns, "n": 1}, {"messages": turns[:1], "n": 2}])
        given = ("--load", tmp_path / "run", "--max-new-tokens", 9)
        predicted(*given, "--dataset", tmp_path / "new.jsonl", "--output", tmp_path / "out.jsonl")
        rows = read_jsonl(tmp_path / "out.jsonl")
        assert [row["text"] for row in rows] == ["good", "good"]
        assert rows[0]["messages"] == turns
        capsys.readouterr()
        predicted(*given, "--text", "a good film")
        assert json.loads(capsys.readouterr().out) == {"input": "a good film", "text": "good"}

    def test_long_prompts_are_cut(self, instructed: Path, tmp_path: Path, capsys) -> None:
        write_jsonl(tmp_path / "new.jsonl", [{"prompt": "a " + "good film " * 40}, {"prompt": "a good film"}])
        given = ("--load", instructed, "--dataset", tmp_path / "new.jsonl", "--output", tmp_path / "out.jsonl")
        predicted(*given, "--max-new-tokens", 7)
        assert "note: 1 of 2 prompts are truncated" in capsys.readouterr().out


def continuations(folder: Path, prompts: list[str], count: int, **how: object) -> list[str]:
    """What transformers generates after each prompt, one at a time."""
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = network.generate(ids, max_new_tokens=count, do_sample=False, pad_token_id=1, eos_token_id=2, **how)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def test_multiple_choice(world: World, tmp_path: Path) -> None:
    """Against the log-probabilities of the merged model, choice by choice."""
    rows = [
        {"prompt": row["sentence"], "choices": ["good", "bad film", "poor"][: 2 + row["label"]], "label": row["label"]}
        for row in sentences(30, seed=4)
    ]
    write_jsonl(tmp_path / "train.jsonl", rows)
    named = ("--choices-column", "choices", "--max-steps", 3, "--project-dir", tmp_path, "--project", "run")
    assert run("train", "opt_lora", tmp_path / "train.jsonl", "--load", world.opt, *named) == 0
    write_jsonl(tmp_path / "new.jsonl", [{"prompt": row["prompt"], "choices": row["choices"]} for row in rows[:7]])
    given = ("--load", tmp_path / "run", "--dataset", tmp_path / "new.jsonl")
    predicted(*given, "--output", tmp_path / "out.jsonl", "--batch-size", 2)
    folder = merged(tmp_path / "run", tmp_path / "merged")
    network, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    for row in read_jsonl(tmp_path / "out.jsonl"):
        scores = []
        for choice in row["choices"]:
            ids = tokenizer(f"{row['prompt']} {choice}", return_tensors="pt").input_ids
            with torch.no_grad():
                tokens = network(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            scores.append(float(tokens[-len(choice.split()) :].sum()))
        assert row["log_likelihoods"] == pytest.approx(scores, abs=1e-4)
        assert row["choice"] == row["choices"][scores.index(max(scores))]


class TestInterrupted:
    @pytest.fixture
    def interrupted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
        """Ctrl-C in the third batch. The list gets the number of rows of each batch that was predicted."""
        answers, batches = Classification.answers, list[int]()

        def of_some(task: Classification, batch: dict[str, Any]) -> Any:
            if len(batches) == 2:
                batches.append(0)
                raise KeyboardInterrupt
            batches.append(len(batch["input_ids"]))
            return answers(task, batch)

        monkeypatch.setattr(Classification, "answers", of_some)
        return batches

    def test_it_continues(
        self, trained: Path, new: Path, texts: list[str], tmp_path: Path, interrupted: list[int], capsys
    ) -> None:
        given = ("--load", trained, "--dataset", new, "--batch-size", 4)
        predicted(*given, "--output", tmp_path / "out.csv", expected=130)
        assert interrupted == [4, 4, 0]
        assert not (tmp_path / "out.csv").exists()
        assert f"stopped after 8 of {len(texts)} rows; the same command continues" in capsys.readouterr().out
        (rows,) = tmp_path.glob(".out.csv.partial/rows-*.jsonl")
        rows.write_text(rows.read_text()[:-5])  # a process that is killed may leave half a line
        predicted(*given, "--output", tmp_path / "out.csv")
        assert f"7 of {len(texts)} rows are predicted already" in capsys.readouterr().out
        assert sum(interrupted[3:]) == len(texts) - 4
        assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
        predicted(*given, "--output", tmp_path / "whole.csv")
        assert (tmp_path / "whole.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()

    def test_rows_of_another_command_are_not_used(
        self, trained: Path, new: Path, texts: list[str], tmp_path: Path, interrupted: list[int]
    ) -> None:
        given = ("--load", trained, "--batch-size", 4, "--output", tmp_path / "out.csv")
        predicted(*given, "--dataset", new, expected=130)
        other = write_csv(tmp_path / "other.csv", "sentence", texts[::-1])
        predicted(*given, "--dataset", other)
        assert sum(interrupted[3:]) == len(texts)
        shutil.copyfile(tmp_path / "out.csv", tmp_path / "again.csv")
        predicted(*given, "--dataset", other, "--overwrite")
        assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "out.csv").read_bytes()


class TestTwoProcesses:
    @pytest.mark.slow
    def test_write_what_one_writes(self, trained: Path, new: Path, tmp_path: Path) -> None:
        given = ("predict", "--load", trained, "--dataset", new, "--batch-size", 4)
        assert run(*given, "--output", tmp_path / "one.csv") == 0
        finished = run_apart(*given, "--output", tmp_path / "two.csv", "--num-devices", 2)
        assert finished.returncode == 0, finished.stderr
        assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
        assert {path.name for path in tmp_path.iterdir()} == {"one.csv", "two.csv"}

    @pytest.mark.slow
    def test_text_that_is_drawn_from_a_sharded_base(self, instructed: Path, texts: list[str], tmp_path: Path) -> None:
        write_jsonl(tmp_path / "new.jsonl", [{"prompt": text} for text in texts[:9]])
        given = ("predict", "--load", instructed, "--dataset", tmp_path / "new.jsonl", "--batch-size", 2)
        how = ("--max-new-tokens", 6, "--temperature", 0.7)
        assert run(*given, *how, "--output", tmp_path / "one.jsonl") == 0
        two = ("--num-devices", 2, "--strategy", "fsdp", "--output", "-")
        finished = run_apart(*given, *how, *two)
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout == (tmp_path / "one.jsonl").read_text()


class TestMistakes:
    @pytest.mark.parametrize(
        ("found", "expected", "arguments"),
        [
            ("there is nothing to predict", "--dataset a file of rows", ()),
            ("--dataset and --text are both given", "give one", ("--dataset", "NEW", "--text", "a")),
            ("--dataset sst2 is a data set of the program", "test --row-results", ("--dataset", "sst2")),
            ("--output is missing", ".csv, .jsonl, .parquet", ("--dataset", "NEW")),
            ("ends in .xlsx", ".csv", ("--dataset", "NEW", "--output", "out.xlsx")),
            ("ends in nothing", ".csv", ("--dataset", "NEW", "--output", "out")),
            ("/nowhere of --output is not there", "make it", ("--dataset", "NEW", "--output", "/nowhere/out.csv")),
            ("is there already", "--overwrite", ("--dataset", "NEW", "--output", "NEW")),
            ("is the file of --dataset", "another name", ("--dataset", "NEW", "--output", "NEW", "--overwrite")),
            ("gone.csv is not there", "give a file", ("--dataset", "gone.csv", "--output", "-")),
            ("--num-beams is for generated text", "leave it out", ("--text", "a", "--num-beams", 2)),
            ("--temperature is for generated text", "leave it out", ("--text", "a", "--temperature", 0.5)),
            ("does not fit a model that was trained on sst2", "it reads sentence",
             ("--dataset", "NEW", "--output", "-", "--prompt-column", "sentence")),
            ("no column 'review'", "valid: id, sentence",
             ("--dataset", "NEW", "--output", "-", "--text-columns", "review")),
        ],
    )  # fmt: skip
    def test_before_the_model_loads(
        self, trained: Path, new: Path, capfd, monkeypatch, found: str, expected: str, arguments: tuple[object, ...]
    ) -> None:
        monkeypatch.setattr("actions.prediction.predictor.load_model", lambda *_: pytest.fail("weights are read"))
        given = [str(new) if word == "NEW" else word for word in arguments]
        complains(capfd, found, expected, "predict", "--load", trained, *given)

    def test_values_that_parquet_cannot_hold(self, trained: Path, tmp_path: Path, capfd, monkeypatch) -> None:
        monkeypatch.setattr("actions.prediction.predictor.load_model", lambda *_: pytest.fail("weights are read"))
        write_jsonl(tmp_path / "new.jsonl", [{"sentence": "a", "n": 1}, {"sentence": "b", "n": "two"}])
        given = ("--dataset", tmp_path / "new.jsonl", "--output", tmp_path / "out.parquet")
        complains(capfd, "column 'n' holds values of several types", "csv", "predict", "--load", trained, *given)

    def test_of_a_language_model(self, instructed: Path, new: Path, world: World, capfd) -> None:
        given = ("predict", "--load", instructed, "--text", "a")
        complains(capfd, "--num-beams and --temperature", "draw", *given, "--num-beams", 2, "--temperature", 0.5)
        complains(capfd, "--probabilities is for classes", "leave it out", *given, "--probabilities")
        complains(capfd, "leaves no room for a prompt", "at most 47", *given, "--max-new-tokens", 60)
        base = ("predict", "--model", "opt_lora", "--load", world.opt, "--task", "classification", "--text", "a")
        complains(capfd, "no trained classification head", "--load the folder of a run", *base)
