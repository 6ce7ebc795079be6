"""Encodes rows to predict as token ids. They have neither labels nor responses.

A row has `input_ids`, `length`, and for generated text `context`, which is its length: all tokens are the prompt.
Classification and multiple choice are encoded as in training.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dataset.encoding.chat import check_template
from dataset.encoding.encode import Lengths, encode
from dataset.encoding.render import rendered
from dataset.encoding.tokens import end_of, ids_of, start_of
from dataset.reading.conversations import ASSISTANT, FORM, Message
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts, and how many of them were too long."""

    rows: Dataset
    truncated: int = 0


def encode_new_rows(texts: Dataset, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths) -> Prompts:
    """Encode the columns `spec.inputs`. A prompt has at most `limits.max_token_len - limits.max_target_len` tokens.

    A longer prompt loses its end, but not the text between prompt and response. A longer conversation, and a longer
    text to continue, lose their beginning.
    """
    if not spec.writes_text:
        return Prompts(encode(texts, spec, tokenizer, limits))
    room = limits.max_token_len - limits.max_target_len
    whole = _conversations(texts, spec, tokenizer) if spec.chat else _prompts(texts, spec, tokenizer)
    kept = [cut(*parts, room) for parts in whole]
    rows = {"input_ids": kept, "context": [*map(len, kept)], "length": [*map(len, kept)]}
    return Prompts(Dataset.from_dict(rows), sum(sum(map(len, parts)) > room for parts in whole))


Parts = tuple[list[int], list[int], list[int]]  # the start, the text, and what follows it


def cut(start: list[int], text: list[int], cue: list[int], room: int) -> list[int]:
    """Return the tokens of a prompt. A text that is too long loses its end if a cue follows, else its beginning."""
    left = max(1, room - len(start) - len(cue))
    return [*start, *(text[:left] if cue else text[-left:]), *cue]


def _prompts(texts: Dataset, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> list[Parts]:
    name = "text" if spec.prompt is None else "prompt"
    found = [text for table in rendered(texts, spec) for text in table[name].to_pylist()]
    start, cue = start_of(tokenizer), ids_of(tokenizer, spec.cue) if spec.cue else []
    # A model needs a token to go on from.
    return [(start, ids or ([] if start or cue else end_of(tokenizer)), cue) for ids in ids_of(tokenizer, found)]


def _conversations(texts: Dataset, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> list[Parts]:
    check_template(tokenizer)
    return [([], conversation_ids(tokenizer, json.loads(text)), []) for text in texts[spec.columns[0]]]


def conversation_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Return the tokens of a conversation up to where the assistant answers. Its answers at the end are left out.

    Raises UserError if nothing is left, or if the chat template fails.
    """
    count = len(messages)
    while count and messages[count - 1]["role"] == ASSISTANT:
        count -= 1
    shown = json.dumps(messages)[:80]
    if not count:
        raise UserError(f"the conversation {shown} has no turn to answer", FORM)
    try:
        text = tokenizer.apply_chat_template([*messages[:count]], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template is a program and raises errors of its own
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"the chat template fails for the conversation {shown} ({reason})", "correct it or leave it out"
        ) from error
    return ids_of(tokenizer, str(text))


def ends_of_answers(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens that end generated text: the end of the sequence, and for conversations that of a turn."""
    return list(dict.fromkeys((*end_of(tokenizer), *(_end_of_turn(tokenizer) if spec.chat else ()))))


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special token that the chat template writes after an answer. No token if it writes none there."""
    answer = "answer"
    turns = [{"role": "user", "content": "question"}, {"role": ASSISTANT, "content": answer}]
    after = ids_of(tokenizer, str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(answer)[2])
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return after[:1] if after and after[0] in special else []
