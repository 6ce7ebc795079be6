"""Token ids against what one works out by hand."""

from __future__ import annotations

import operator
import os
from dataclasses import replace

import pytest
from datasets import Dataset

from dataset import registry
from dataset.encoding.encode import Lengths, encode, lengths
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from tests.tiny import word_tokenizer

WORDS = "a b c d e f g h i j"
BOS, EOS = 0, 2
A, B, C, D, E, F, G, H, I, J = range(6, 16)  # noqa: E741
TEXT = DatasetSpec("text", "causal_language_modeling", ("text",), ("perplexity",))
ONE = DatasetSpec("one", "classification", ("text",), ("accuracy",), labels=("no", "yes"))
TWO = replace(ONE, name="two", columns=("first", "second"))


def prompt(row):
    return row["prompt"]


def response(row):
    return row["response"]


def process(row):
    return str(os.getpid())


ANSWER = replace(TEXT, name="answer", columns=("prompt", "response"), prompt=prompt, response=response, cue=" j")
SUMMARY = replace(ANSWER, name="summary", task="summarization", metrics=("rouge1",))


def encoded(spec, rows, tokenizer, total, target=0):
    return encode(Dataset.from_list(rows), spec, tokenizer, Lengths(total, target)).to_list()


# Packing


def blocks(texts, total, style="decoder", spec=TEXT, **options):
    tokenizer = word_tokenizer([WORDS], style, **options)
    rows = encoded(spec, [{"text": text} for text in texts], tokenizer, total)
    assert all(row["length"] == len(row["input_ids"]) and row["context"] == 0 for row in rows)
    return [row["input_ids"] for row in rows]


def test_documents_are_separated_and_blocks_begin_as_the_tokenizer_begins():
    assert blocks(["a b c", "d e"], 4) == [[BOS, A, B, C], [BOS, EOS, D, E], [BOS, EOS]]


def test_a_tokenizer_that_adds_nothing_at_the_start():
    assert blocks(["a b c", "d e f"], 3, "plain") == [[A, B, C], [EOS, D, E], [F, EOS]]


def test_a_last_block_without_anything_to_predict_is_dropped():
    assert blocks(["a b c", "d e"], 3, "plain") == [[A, B, C], [EOS, D, E]]


def test_no_end_of_sequence_token():
    assert blocks(["a b c", "d e"], 3, "plain", eos_token=None) == [[A, B, C], [D, E]]


def test_lines_of_one_text_are_not_separated():
    assert blocks(["a b c", "", "d e"], 4, spec=replace(TEXT, running_text=True)) == [[BOS, A, B, C], [BOS, D, E, EOS]]


def test_packing_loses_nothing_over_many_rows():
    texts = [WORDS] * 2500  # more than one call of `map`
    made = blocks(texts, 8)
    assert [len(block) for block in made[:-1]] == [8] * (len(made) - 1)
    assert [token for block in made for token in block[1:]] == [A, B, C, D, E, F, G, H, I, J, EOS] * 2500


def test_blocks_are_the_same_in_a_file_and_in_memory():
    """A file has the tokens in pieces of a thousand rows, whose ends are inside of blocks."""
    rows = Dataset.from_list([{"text": text} for text in ("a b c", "", WORDS) * 1000])
    tokenizer = word_tokenizer([WORDS], "decoder")
    made = [encode(rows, TEXT, tokenizer, Lengths(7, 0), key).to_list() for key in (None, "pieces")]
    assert made[0] == made[1]
    assert {row["length"] for row in made[0][:-1]} == {7}


@pytest.mark.parametrize("spec", [TEXT, ONE], ids=["packed", "row by row"])
def test_the_number_of_processes_does_not_matter(spec):
    texts = [WORDS[: 2 * (row % 10)] for row in range(20_000)]
    rows = Dataset.from_dict({"text": texts, "label": [row % 2 for row in range(20_000)]})
    tokenizer = word_tokenizer([WORDS], "decoder")
    made = [encode(rows, spec, tokenizer, Lengths(7, 0), str(count), count) for count in (1, 2)]
    assert made[0].to_dict() == made[1].to_dict()


def test_each_process_encodes_its_share():
    rows = Dataset.from_dict({"prompt": ["a b"] * 20_000, "response": ["c"] * 20_000})
    spec = replace(SUMMARY, response=process)
    made = encode(rows, spec, word_tokenizer([WORDS]), Lengths(8, 2), "shares", processes=2)
    first, second = made["target"][:10_000], made["target"][10_000:]
    assert len({*first}) == len({*second}) == 1
    assert {*first} != {*second}


def test_many_empty_rows_first():
    assert blocks([""] * 1500 + ["a b"], 4, spec=replace(TEXT, running_text=True)) == [[BOS, A, B, EOS]]


def test_nothing_to_pack():
    with pytest.raises(UserError, match="holds no text"):
        blocks(["", ""], 4, "plain", replace(TEXT, running_text=True))


# Classification


def test_one_text_and_a_pair_as_the_tokenizer_joins_them():
    tokenizer = word_tokenizer([WORDS], "encoder")
    assert encoded(ONE, [{"text": "a b", "label": 1}], tokenizer, 9) == [
        {"input_ids": [BOS, A, B, EOS], "labels": 1, "length": 4}
    ]
    assert encoded(TWO, [{"first": "a", "second": "b c", "label": 0}], tokenizer, 9)[0]["input_ids"] == [
        *(BOS, A, EOS, EOS, B, C, EOS)
    ]


def test_truncation_cuts_the_longer_of_a_pair():
    tokenizer = word_tokenizer([WORDS], "encoder")
    rows = [{"first": "a b c d e f", "second": "g h", "label": 0}]
    assert encoded(TWO, rows, tokenizer, 9)[0]["input_ids"] == [BOS, A, B, C, EOS, EOS, G, H, EOS]
    assert encoded(ONE, [{"text": WORDS, "label": 0}], tokenizer, 5)[0]["input_ids"] == [BOS, A, B, C, EOS]


@pytest.mark.parametrize(
    ("special", "token"), [({}, BOS), ({"bos_token": None}, EOS), ({"bos_token": None, "eos_token": None}, 1)]
)
def test_a_row_without_tokens_gets_one(special, token):
    """A tokenizer that adds nothing makes no token of an empty text, and no model reads a batch without tokens."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = word_tokenizer([WORDS], "plain", model_input_names=names, **special)
    rows = encoded(
        TWO, [{"first": "", "second": "", "label": 1}, {"first": "a", "second": "", "label": 0}], tokenizer, 9
    )
    assert rows[0] == {"input_ids": [token], "token_type_ids": [0], "labels": 1, "length": 1}
    assert rows[1]["input_ids"] == [A]


def test_token_type_ids_where_the_tokenizer_has_them():
    tokenizer = word_tokenizer([WORDS], model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    row = encoded(TWO, [{"first": "a", "second": "b c", "label": 0}], tokenizer, 9)[0]
    assert len(row["token_type_ids"]) == row["length"]


def test_texts_by_a_function():
    spec = registry.get("wic")
    tokenizer = word_tokenizer(["a: b c"])
    row = {"word": "a", "sentence1": "b", "sentence2": "c", "label": 1}
    assert encoded(spec, [row], tokenizer, 9)[0]["input_ids"] == [BOS, 6, 7, 8]


def test_regression_labels_stay_real():
    row = encoded(replace(ONE, labels=()), [{"text": "a", "label": 2.5}], word_tokenizer([WORDS]), 9)[0]
    assert row["labels"] == 2.5


# Prompt and response


def answer(prompt, response, total, target=0, spec=ANSWER, style="decoder", **options):
    rows = [{"prompt": prompt, "response": response}]
    row = encoded(spec, rows, word_tokenizer([WORDS], style, **options), total, target)[0]
    assert row["length"] == len(row["input_ids"]) <= total
    return row["input_ids"][: row["context"]], row["input_ids"][row["context"] :]


def test_prompt_cue_response_end():
    assert answer("a b", "c d", 16) == ([BOS, A, B, J], [C, D, EOS])


def test_an_encoder_like_tokenizer_puts_nothing_between():
    assert answer("a b", "c d", 16, style="encoder") == ([BOS, A, B, J], [C, D, EOS])


def test_no_special_tokens():
    assert answer("a b", "c d", 16, style="plain", eos_token=None) == ([A, B, J], [C, D])


def test_the_prompt_is_cut_before_the_response_and_keeps_its_cue():
    assert answer("a b c d e f", "g h", 8) == ([BOS, A, B, C, J], [G, H, EOS])


def test_a_long_response_leaves_a_quarter_to_the_prompt_and_loses_its_end():
    assert answer("a b c d e f", "g h i a b c d e f g h i", 16) == (
        [BOS, A, B, J],
        [G, H, I, A, B, C, D, E, F, G, H, I],
    )
    assert answer("a b c d e f", "g h i a b c d e f", 12) == ([BOS, A, J], [G, H, I, A, B, C, D, E, F])


def test_a_short_prompt_leaves_its_quarter_to_the_response():
    assert answer("", "a b c d e f", 8) == ([BOS, J], [A, B, C, D, E, F])


def test_a_summary_has_its_own_length_and_its_prompt_the_rest():
    assert answer("a b c d e f", "g h i", 8, 3, SUMMARY) == ([BOS, A, B, C, J], [G, H, I])
    assert answer("a b c d e f", "g", 8, 3, SUMMARY) == ([BOS, A, B, C, J], [G, EOS])
    assert answer("a", "g h i a b", 8, 3, SUMMARY) == ([BOS, A, J], [G, H, I])


def test_functions_that_stand_in_no_file():
    spec = replace(ANSWER, prompt=operator.itemgetter("prompt"), response=operator.itemgetter("response"))
    assert answer("a b", "c d", 16, spec=spec) == ([BOS, A, B, J], [C, D, EOS])


def test_the_whole_reference_goes_along():
    rows = [{"prompt": "a", "response": "g h i a b"}]
    assert encoded(SUMMARY, rows, word_tokenizer([WORDS]), 8, 3)[0]["target"] == "g h i a b"


# Lengths


@pytest.mark.parametrize(
    ("tokenizer_limit", "model_limit", "asked", "total"),
    [
        (None, None, None, 512),
        (None, 2048, None, 512),
        (None, 64, None, 64),
        (32, 64, None, 32),
        (None, 2048, 1024, 1024),
    ],
)
def test_default_length(tokenizer_limit, model_limit, asked, total):
    options = {"model_max_length": tokenizer_limit} if tokenizer_limit else {}
    tokenizer = word_tokenizer([WORDS], **options)
    assert lengths(ONE, tokenizer, max_token_len=asked, model_limit=model_limit) == Lengths(total, 0)


@pytest.mark.parametrize(("total", "asked", "target"), [(512, {}, 64), (64, {"max_target_len": 40}, 40)])
def test_default_summary_length(total, asked, target):
    """The default is the one of the option."""
    assert lengths(SUMMARY, word_tokenizer([WORDS]), total, **asked) == Lengths(total, target)


@pytest.mark.parametrize(
    ("spec", "total", "target", "message"),
    [
        (ONE, 65, 64, "--max-token-len 65 is more than the model takes; at most 64"),
        (ONE, 2, 64, "leaves no room for the text; at least 3"),
        (TWO, 5, 64, "leaves no room for the text; at least 6"),
        (TEXT, 2, 64, "leaves no room for the text; at least 3"),
        (ANSWER, 3, 64, "leaves no room for the prompt; at least 4"),
        (SUMMARY, 16, 14, "leaves no room for the prompt beside a summary of 14; at least 17"),
        (SUMMARY, 16, 0, "--max-target-len 0 leaves no room for a summary"),
    ],
)
def test_no_room(spec, total, target, message):
    tokenizer = word_tokenizer([WORDS], "encoder")
    with pytest.raises(UserError, match=message):
        lengths(spec, tokenizer, total, target, model_limit=64)
    # The number that the message names is right.
    if "at least" in message and spec is not SUMMARY:
        least = int(message.split("at least ")[1])
        rows = [{"text": "a b", "first": "a b", "second": "c d", "prompt": "a b", "response": "c d", "label": 0}]
        row = encoded(spec, rows, tokenizer, lengths(spec, tokenizer, least).max_token_len)[0]
        assert set(row["input_ids"]) & {A, C}
