"""Conversations, as the chat template of a tokenizer writes them, with loss on the assistant's turns.

A conversation is a list of `{"role": …, "content": …}`, or of `{"from": …, "value": …}` as in ShareGPT. Between reading
and encoding it is kept as JSON text with the first names, so that it is compared and cached as any text is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from dataset.reading.conversations import _FORM, ASSISTANT, TOOLS, Message, _is_learned
from heterolora.common.errors import UserError

Span = tuple[int, int]  # start, end


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError if the tokenizer cannot encode conversations."""
    if tokenizer.chat_template is None:
        raise UserError(
            "the tokenizer of the model has no chat template for a column of messages",
            "use a model that was tuned for conversations, or give --prompt-column and --response-column",
        )
    if not tokenizer.is_fast:
        raise UserError(
            "the tokenizer of the model does not say where its tokens are in the text, which conversations need",
            "use a model with a tokenizer.json",
        )


def encode_chat(tokenizer: PreTrainedTokenizerBase, limit: int, conversation: str) -> tuple[list[int], list[int]]:
    """Returns the token ids of a conversation, at most `limit`, and the spans of tokens that the loss is taken on.

    The spans are one list: start, end, start, end, and so on. A conversation that is too long loses its end. If its
    first answer begins so late that nothing of it would remain, it also loses its beginning.
    """
    messages = json.loads(conversation)
    try:
        template = tokenizer.get_chat_template()
        if TOOLS not in template and any(TOOLS in message for message in messages):
            raise UserError(
                f"the chat template does not write the tool calls in the conversation {conversation[:80]}",
                "use a model that was tuned for tools, or leave the conversation out",
            )
        marks = "{% generation" in template or "{%- generation" in template
        if marks and all(_is_learned(message) for message in messages if message["role"] == ASSISTANT):
            ids, learned = _marked_by_template(tokenizer, messages)
        else:
            ids, learned = _marked_by_turns(tokenizer, messages)
    except UserError:
        raise
    except Exception as error:  # a template is a program and raises errors of its own
        reason = str(error).strip().partition("\n")[0][:200]
        raise UserError(
            f"the chat template fails for the conversation {conversation[:80]} ({reason})", "correct it or leave it out"
        ) from error
    spans = _runs(learned)
    if not spans:
        raise UserError(f"no token is left of the answers in the conversation {conversation[:80]}", _FORM)
    first, answer = spans[0][0], spans[0][1] - spans[0][0]
    # Three quarters of the row are enough for an answer; the rest is for what comes before it.
    dropped = max(0, first - (limit - min(answer, limit - max(1, limit // 4)))) if len(ids) > limit else 0
    kept = [(max(0, start - dropped), min(end - dropped, limit)) for start, end in spans]
    return ids[dropped : dropped + limit], [edge for start, end in kept if start < end for edge in (start, end)]


def _marked_by_template(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """The ids, and 1 for each token inside the template's own marks `{% generation %}`."""
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    return list(encoded["input_ids"]), list(encoded["assistant_masks"])


def _marked_by_turns(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[list[int], list[int]]:
    """The ids, and 1 for each token that the template adds after the prompt of an assistant's turn."""

    def text_of(count: int, prompt: bool = False) -> str:
        return tokenizer.apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt)

    whole, turns = text_of(len(messages)), []
    for index, message in enumerate(messages):
        if _is_learned(message):
            after = text_of(index + 1)
            if index > 0:
                start = len(before := text_of(index, prompt=True))
            else:  # templates refuse an empty conversation: the turn begins with the prompt that the next one gets
                header = text_of(1, prompt=True).removeprefix(after)
                before, start = "", after.find(header) + len(header) if header in after else 0
            if not (whole.startswith(before) and whole.startswith(after)):
                raise UserError(
                    "the chat template writes a turn in another way once others follow it, so that the assistant's "
                    "turns cannot be found",
                    "give the tokenizer a chat template that marks them with {% generation %}",
                )
            turns.append((start, len(after)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    # A token counts if a part of it is in the turn: one may hold the last space of the prompt and the first word. Some
    # tokenizers say that a token of spaces has no length.
    inside = [
        int(any(a < end and (start < b or start <= a) for start, end in turns)) for a, b in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), inside


def _runs(marks: Sequence[int]) -> list[Span]:
    """The spans of ones."""
    spans, position = [], 0
    for mark, group in groupby(marks):
        size = len(list(group))
        if mark:
            spans.append((position, position + size))
        position += size
    return spans
