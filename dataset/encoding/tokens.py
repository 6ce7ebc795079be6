"""Token ids of texts, and the special tokens at the start and the end of a row."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str | list[str]) -> list[Any]:
    """Return the token ids of a text, or of each text, without special tokens."""
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def start_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the beginning-of-sequence token if the tokenizer adds one, else no token."""
    first = tokenizer("a").input_ids[:1]
    return first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []


def end_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the end-of-sequence token if there is one, else no token."""
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def only_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token of a row without text: that of the start, else of the end, else of padding."""
    tokens = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next(token for token in tokens if token is not None)
