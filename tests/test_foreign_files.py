"""Files in the formats of Alpaca, Dolly and ShareGPT, which other trainers read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset.encoding.render import rendered
from dataset.reading.source import read_splits
from tests.test_own_data import TALK, TEXT, described, write

ALPACA = {"instruction": TEXT, "input": TEXT, "output": TEXT}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_an_instruction_and_its_input_are_one_prompt(tmp_path: Path, suffix: str) -> None:
    """An empty or missing input adds no line break. The record alone gives the same entry."""
    inputs = ["b", "", "" if suffix == "csv" else None]
    rows = [{"instruction": f"a{index}", "input": each, "output": "c"} for index, each in enumerate(inputs)]
    spec, own = described(write(tmp_path, f"mine.{suffix}", rows))
    assert (own.prompt_column, own.response_column) == ("instruction,input", "output")
    again, _ = described(tmp_path / f"mine.{suffix}", **{
        "prompt_column": own.prompt_column, "response_column": own.response_column
    })  # fmt: skip
    for each in (spec, again):
        (batch,) = rendered(read_splits(each, cache=False, share=0.0).train, each)
        assert batch["prompt"].to_pylist() == ["a0\nb", "a1", "a2"]
        assert batch["response"].to_pylist() == ["c"] * 3


AUTHORS = {"user": "human", "assistant": "gpt", "system": "system"}
SHAREGPT = [{"from": AUTHORS[turn["role"]], "value": turn["content"]} for turn in TALK]


def test_turns_of_sharegpt_are_read_as_turns_with_roles(tmp_path: Path) -> None:
    rows = [{"conversations": SHAREGPT}, {"conversations": TALK}]
    spec, own = described(write(tmp_path, "talks.json", rows))
    assert own.messages_column == "conversations"
    read = read_splits(spec, cache=False, share=0.0).train["conversations"][:]
    assert [json.loads(talk) for talk in read] == [TALK, TALK]
