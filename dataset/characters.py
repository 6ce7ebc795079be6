"""Texts in JSON values. JSON can write half of a character, which no file in UTF-8 and no tokenizer takes."""

from __future__ import annotations

import json
from typing import Any

from heterolora.errors import UserError


def check_characters(where: str, value: Any) -> None:
    """Raises UserError if a text in a JSON value holds one half of a surrogate pair without the other."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        found = f"{where} holds {error.object[error.start]!a}, which is half of a character"
        raise UserError(found, "write the whole character, or leave it out") from error
