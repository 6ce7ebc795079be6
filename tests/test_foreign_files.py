"""Files in the formats of Alpaca, Dolly and ShareGPT, which other trainers read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataset.encoding.render import rendered
from dataset.reading.roles import Roles, roles_of
from dataset.reading.source import read_splits
from heterolora.common.errors import UserError
from options.data import OwnDataOptions
from tests.test_own_data import LISTS, LM, TALK, TEXT, WHOLE, described, write

ALPACA = {"instruction": TEXT, "input": TEXT, "output": TEXT}


@pytest.mark.parametrize(
    ("columns", "given", "expected"),
    [
        (ALPACA, {}, Roles(LM, prompt=("instruction", "input"), response="output")),
        ({"instruction": TEXT, "output": TEXT}, {}, Roles(LM, prompt=("instruction",), response="output")),
        ({"instruction": TEXT, "context": TEXT, "response": TEXT, "category": TEXT}, {},
         Roles(LM, prompt=("instruction", "context"), response="response")),
        ({**ALPACA, "prompt": TEXT}, {}, Roles(LM, prompt=("prompt",), response="output")),
        (ALPACA, {"prompt_column": "input,instruction"}, Roles(LM, prompt=("input", "instruction"), response="output")),
        ({'a, "b"': TEXT, "output": TEXT}, {"prompt_column": '"a, ""b"""'},
         Roles(LM, prompt=('a, "b"',), response="output")),
        ({"conversations": LISTS, "id": WHOLE}, {}, Roles(LM, messages="conversations")),
    ],
)  # fmt: skip
def test_what_the_columns_are(columns: dict[str, str], given: dict[str, str], expected: Roles) -> None:
    assert roles_of(columns, OwnDataOptions(**given), None, "mine") == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt_column": "instruction,output", "response_column": "output"}, "are both output"),
        ({"prompt_column": "input,input", "response_column": "output"}, "'input' is given twice; .* --prompt-column"),
        ({"prompt_column": "input,,instruction"}, "names an empty column"),
        ({"prompt_column": "input,instructions"}, "no column 'instructions'; did you mean 'instruction'"),
    ],
)
def test_mistakes_in_the_names_of_prompts(tmp_path: Path, given: dict[str, str], message: str) -> None:
    path = write(tmp_path, "mine.jsonl", [{"instruction": "a", "input": "b", "output": "c"}])
    with pytest.raises(UserError, match=message):
        described(path, **given)


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


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"from": "function_call", "value": "{}"}, "turn 2 in row 0 .* from 'function_call'; expected human, user"),
        ({"from": ["gpt"], "value": "a"}, r"is from \['gpt'\]; expected human"),
        ({"from": "gpt", "value": 3}, "turn 2 in row 0 .* is {'role': 'assistant', 'content': 3}; a conv"),
        ({"from": "gpt"}, "turn 2 in row 0 of .* is {'from': 'gpt'}; a conversation is"),
    ],
)  # fmt: skip
def test_turns_of_sharegpt_that_cannot_be_read(tmp_path: Path, turn: dict[str, object], message: str) -> None:
    spec, _ = described(write(tmp_path, "talks.json", [{"conversations": [SHAREGPT[0], turn]}]))
    with pytest.raises(UserError, match=message):
        read_splits(spec, cache=False)
