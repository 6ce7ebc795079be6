"""Conversations, as the chat template of a tokenizer writes them, with loss on the assistant's turns.

A conversation is a list of `{"role": …, "content": …}`, or of `{"from": …, "value": …}` as in ShareGPT. Between reading
and encoding it is kept as JSON text with the first names, so that it is compared and cached as any text is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dataset.encoding.confined import confined
from dataset.reading.conversations import ASSISTANT, FORM, TOOLS, Message, is_learned
from heterolora.common.errors import UserError

Span = tuple[int, int]  # start, end


def check_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer cannot encode conversations."""
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


def encode_chats(
    tokenizer: PreTrainedTokenizerBase, limit: int, conversations: Sequence[str]
) -> list[tuple[list[int], list[int]]]:
    """Return `encode_chat` of each conversation. Raises UserError if one takes too much time or memory."""
    encoded = confined("the chat template", partial(encode_chat, tokenizer, limit), conversations)
    return [(ids, spans) for ids, spans in encoded]


def encode_chat(tokenizer: PreTrainedTokenizerBase, limit: int, conversation: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a conversation, at most `limit`, and the spans of tokens that the loss is taken on.

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
        return _encoded(tokenizer, limit, messages, conversation)
    except UserError:
        raise
    except Exception as error:  # a template is a program and raises errors of its own
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0][:200]
        raise UserError(
            f"the chat template fails for the conversation {conversation[:80]} ({reason})", "correct it or leave it out"
        ) from error


def _encoded(
    tokenizer: PreTrainedTokenizerBase, limit: int, messages: list[Message], conversation: str
) -> tuple[list[int], list[int]]:
    text, learned = _rendered(tokenizer, messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids, places = list(encoded["input_ids"]), np.asarray(encoded["offset_mapping"]).reshape(-1, 2)
    marks = np.zeros(len(ids), dtype=bool)
    last = None  # the end of the text of which tokens are kept, when the first answer is complete
    for start, end in learned:
        inside = _tokens_in(places, start, end)
        if last is None and _after_a_gap(marks, inside):
            dropped = _dropped(limit, len(ids), _runs(marks.tolist())[0])
            last = int(places[: dropped + limit, 1].max())
        if last is not None and start >= last:  # each further turn costs as much as all that are before it
            break
        marks |= inside
    spans = _runs(marks.tolist())
    if not spans:
        raise UserError(f"no token is left of the answers in the conversation {conversation[:80]}", FORM)
    dropped = _dropped(limit, len(ids), spans[0])
    kept = [(max(0, start - dropped), min(end - dropped, limit)) for start, end in spans]
    return ids[dropped : dropped + limit], [edge for start, end in kept if start < end for edge in (start, end)]


def _after_a_gap(marks: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the first token inside comes after the marked ones, and does not follow one of them."""
    first = int(np.argmax(inside))
    return bool(marks.any() and inside.any() and not marks[max(0, first - 1) :].any())


def _dropped(limit: int, count: int, answer: Span) -> int:
    """The tokens at the beginning of a conversation that are left out, so that a part of the first answer remains."""
    if count <= limit:
        return 0
    first, size = answer[0], answer[1] - answer[0]
    # Three quarters of the row are enough for an answer; the rest is for what comes before it.
    return max(0, first - (limit - min(size, limit - max(1, limit // 4))))


def _tokens_in(places: np.ndarray, start: int, end: int) -> np.ndarray:
    """Which tokens count for a span of the text: those of which a part is in it.

    One may hold the last space of the prompt and the first word. Some tokenizers say that a token of spaces has no
    length.
    """
    first, behind = places[:, 0], places[:, 1]
    return (first < end) & ((start < behind) | (start <= first))


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> tuple[str, Iterator[Span]]:
    """Return the text, and the spans of characters that are learned, in order.

    They are inside the template's own marks `{% generation %}`, if it has some, and inside a turn that is learned.
    """
    template = tokenizer.get_chat_template()
    if "{% generation" not in template and "{%- generation" not in template:
        text = _text_of(tokenizer, messages)
        return text, _turns(tokenizer, messages, text)
    values: dict[str, Any] = {"chat_template": template, "return_assistant_tokens_mask": True}
    rendered: Any = render_jinja_template([messages], **values | tokenizer.special_tokens_map)
    (text,), (marked,) = rendered
    if all(is_learned(message) for message in messages if message["role"] == ASSISTANT):
        return text, iter(marked)
    return text, _common(marked, _turns(tokenizer, messages, text))


def _common(marked: Sequence[Span], turns: Iterator[Span]) -> Iterator[Span]:
    """What is in both. Both are in order."""
    for start, end in turns:
        yield from ((max(start, a), min(end, b)) for a, b in marked if a < end and start < b)


def _text_of(tokenizer: PreTrainedTokenizerBase, messages: list[Message], prompt: bool = False) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _turns(tokenizer: PreTrainedTokenizerBase, messages: list[Message], whole: str) -> Iterator[Span]:
    """Yield what the template adds to the text after the prompt of each assistant's turn that is learned."""
    for index, message in enumerate(messages):
        if is_learned(message):
            after = _text_of(tokenizer, messages[: index + 1])
            if index > 0:
                start = len(before := _text_of(tokenizer, messages[:index], prompt=True))
            else:  # templates refuse an empty conversation: the turn begins with the prompt that the next one gets
                header = _text_of(tokenizer, messages[:1], prompt=True).removeprefix(after)
                before, start = "", after.find(header) + len(header) if header in after else 0
            if not (whole.startswith(before) and whole.startswith(after)):
                raise UserError(
                    "the chat template writes a turn in another way once others follow it, so that the assistant's "
                    "turns cannot be found",
                    "give the tokenizer a chat template that marks them with {% generation %}",
                )
            yield start, len(after)


def _runs(marks: Sequence[bool]) -> list[Span]:
    """Return the spans of true marks."""
    spans, position = [], 0
    for mark, group in groupby(marks):
        size = len(list(group))
        if mark:
            spans.append((position, position + size))
        position += size
    return spans
