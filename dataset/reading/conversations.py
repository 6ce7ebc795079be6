"""Conversations of own data: the forms that are read, as messages with a role."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dataset.reading.json_files import check_characters
from heterolora.common.errors import UserError, shown

ASSISTANT, TOOLS = "assistant", "tool_calls"
FORM = 'a conversation is a list of {"role": "user" or "assistant" or "system", "content": text}'
_AUTHORS = {"human": "user", "user": "user", "gpt": ASSISTANT, ASSISTANT: ASSISTANT, "system": "system"}  # of ShareGPT

Message = dict[str, Any]


def conversations(where: str, values: Sequence[Any], answered: bool = True) -> list[str]:
    """Return each conversation of a split as JSON text. Raises UserError for the first one of another form, or, if all
    must be `answered`, without a turn of the assistant.
    """
    return [_as_json(f"row {index} of {where}", value, answered) for index, value in enumerate(values)]


def _as_json(where: str, value: Any, answered: bool) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
            check_characters(where, value)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where} has messages that are not JSON", FORM) from error
    else:
        value = _without_nulls(value)
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} has {shown(value)[:60]} for messages", FORM)
    messages = []
    for turn, found in enumerate(value, 1):
        message = _with_role(f"turn {turn} in {where}", found)
        if not _is_message(message):
            raise UserError(f"turn {turn} in {where} is {shown(message)[:60]}", FORM)
        kept = {key: each for key, each in message.items() if each is not None and (key != TOOLS or each)}
        messages.append({"content": "", **kept})
    if answered and not any(is_learned(message) and (message["content"] or TOOLS in message) for message in messages):
        raise UserError(f"{where} has no turn of the role '{ASSISTANT}'", "the loss is taken on its turns")
    return json.dumps(messages, default=str)  # a turn may have a time


def _without_nulls(value: Any) -> Any:
    """Return a value that Arrow has read, without the keys that it adds to an object because another row has them."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def is_learned(message: Message) -> bool:
    """Whether the loss is taken on a turn. As in OpenAI's files, a turn of weight 0 is only read."""
    return message["role"] == ASSISTANT and message.get("weight", 1) != 0


def _with_role(where: str, message: Any) -> Any:
    """Return a turn with the names of ShareGPT with `role` and `content` instead, and any other value as it is."""
    if not isinstance(message, Mapping) or "from" not in message or "value" not in message or "role" in message:
        return message
    author = message["from"]
    if not isinstance(author, str) or author not in _AUTHORS:
        raise UserError(f"{where} is from {shown(author)[:60]}", f"expected {', '.join(_AUTHORS)}")
    return {"role": _AUTHORS[author], "content": message["value"]}


def _is_message(message: Any) -> bool:
    """Whether it has a role and a text. A turn that calls tools may have no text."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    return isinstance(message.get("content"), str) or (message.get("content") is None and bool(message.get(TOOLS)))
