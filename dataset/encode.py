"""Rows → token ids, once: tokenised with `datasets.map` and kept in the data sets' cache folder.

Every encoded row has `input_ids` and `length`, and by kind of data:

- classification: `labels`, and `token_type_ids` where the tokenizer has them;
- packed text: `context` 0;
- prompt → response: `context`, the number of leading tokens that no loss is taken on, and for summaries the reference
  as text in `target`.

Causal labels are the ids themselves after `context` tokens, so `dataset.collate` makes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from dataset.spec import DatasetSpec, Row
from heterolora.errors import UserError

# Without `--max-token-len`, and where neither tokenizer nor model is shorter.
DEFAULT_LENGTH = 512
DEFAULT_TARGET_LENGTH = 128
# Said, because a first thousand of empty rows would not show it.
_TOKENS = Features({"input_ids": List(Value("int32"))})
# A long response leaves its prompt at least this share of the tokens.
_PROMPT_SHARE = 0.25


@dataclass(frozen=True)
class Lengths:
    """How many tokens a row may have.

    Attributes:
        max_token_len: of a whole row, special tokens included.
        max_target_len: of a summary, its end-of-sequence token included; the prompt gets the rest. 0 for other tasks.
    """

    max_token_len: int
    max_target_len: int


def lengths(
    spec: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    max_token_len: int | None = None,
    max_target_len: int | None = None,
    model_limit: int | None = None,
) -> Lengths:
    """The lengths to encode with: as asked, by default what tokenizer and model can take, up to `DEFAULT_LENGTH`.

    Args:
        spec: the entry.
        tokenizer: its `model_max_length` is one limit.
        max_token_len: `--max-token-len`.
        max_target_len: `--max-target-len`; by default a quarter of the row, up to `DEFAULT_TARGET_LENGTH`.
        model_limit: positions that the model has; `None`: no limit.

    Raises:
        UserError: more than the limit, or too little to hold anything.
    """
    limit = min(tokenizer.model_max_length, model_limit or tokenizer.model_max_length)
    total = min(limit, DEFAULT_LENGTH) if max_token_len is None else max_token_len
    if total > limit:
        raise UserError(f"--max-token-len {total} is more than the model takes", f"at most {limit}")
    if spec.task == "classification":
        needed = tokenizer.num_special_tokens_to_add(pair=False) + 1
        if spec.pair or spec.texts:
            needed = tokenizer.num_special_tokens_to_add(pair=True) + 2
        if total < needed:
            raise UserError(f"--max-token-len {total} leaves no room for the text", f"at least {needed} are needed")
        return Lengths(total, 0)
    frame = len(_start(tokenizer)) + len(_ids(tokenizer, spec.cue))
    if spec.prompt is None:
        if total < frame + 2:
            raise UserError(f"--max-token-len {total} leaves no room for the text", f"at least {frame + 2} are needed")
        return Lengths(total, 0)
    target = 0
    if spec.task == "summarization":
        target = min(DEFAULT_TARGET_LENGTH, total // 4) if max_target_len is None else max_target_len
        if target < 1:
            raise UserError(f"--max-target-len {target} leaves no room for a summary", "at least 1 is needed")
    needed = frame + 1 + max(target, 1)
    if total < needed:
        beside = f" beside a summary of {target}" if target else ""
        raise UserError(
            f"--max-token-len {total} leaves no room for the prompt{beside}", f"at least {needed} are needed"
        )
    return Lengths(total, target)


def encode(
    rows: Dataset, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths, cache: bool = True
) -> Dataset:
    """Encodes one split as the module docstring says.

    Args:
        rows: of `dataset.source.Splits`.
        spec: their entry.
        tokenizer: its own special tokens are used as they are.
        limits: of `lengths`.
        cache: read from and write to the cache folder; else all is kept in memory.

    Raises:
        UserError: nothing to pack, or a cache folder that cannot be written.
    """
    key = _key(rows, spec, tokenizer, limits)
    if spec.task == "classification":
        return _map(rows, partial(_classification, spec, tokenizer, limits.max_token_len), key, cache)
    if spec.prompt is not None:
        return _map(rows, partial(_prompt_response, spec, tokenizer, limits), key, cache)
    tokens = _map(rows, partial(_document, spec, tokenizer), f"{key}-tokens", cache, features=_TOKENS)
    block = partial(_pack, _start(tokenizer), _end(tokenizer) if spec.running_text else [], limits.max_token_len)
    # One call for the whole split, so that no text is lost at the border of two calls.
    blocks = _map(tokens.with_format("arrow"), block, f"{key}-blocks", cache, batch_size=len(tokens))
    if len(blocks) == 0:
        raise UserError(f"a split of data set '{spec.name}' holds no text", "give it at least two tokens")
    return blocks.with_format(None)


def _map(rows: Dataset, function: Callable[[Any], Any], key: str, cache: bool, **options: Any) -> Dataset:
    """`rows.map(function, **options)` of whole batches, kept under `key`."""
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "heterolora"
    try:
        if cache:
            folder.mkdir(parents=True, exist_ok=True)
        return rows.map(
            function,
            batched=True,
            remove_columns=rows.column_names,
            keep_in_memory=not cache,
            load_from_cache_file=cache,
            cache_file_name=str(folder / f"{key}.arrow") if cache else None,
            new_fingerprint=Hasher.hash(key),
            desc="encoding",
            **options,
        )
    except OSError as error:
        raise UserError(
            f"the data set cache {folder} cannot be written ({error.strerror or error})",
            "make room, set HF_HOME to another folder, or give --disable-dataset-cache",
        ) from error


def _key(rows: Dataset, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths) -> str:
    """What the encoded rows depend on, this file and the entry's functions included."""
    functions = [_source(function) for function in (spec.texts, spec.prompt, spec.response) if function is not None]
    return Hasher.hash(
        [
            *(rows._fingerprint, tokenizer, limits, Path(__file__).read_text()),
            *(spec.task, spec.columns, spec.label, spec.cue, spec.running_text, functions),
        ]
    )


def _source(function: Callable[..., Any]) -> Any:
    """The text of the file that a function is from, its helpers included; the function itself where there is none."""
    file = getattr(inspect.getmodule(function), "__file__", None)
    return Path(file).read_bytes() if file else function


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, where the tokenizer's own encodings begin with one."""
    first = tokenizer("a").input_ids[:1]
    return first if tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id] else []


def _end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _rows(batch: dict[str, list[Any]]) -> list[Row]:
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _classification(
    spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limit: int, batch: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """One or two texts as the tokenizer joins them; of a pair, the longer one is cut first."""
    if spec.texts is None:
        texts = [batch[column] for column in spec.columns]
    else:
        texts = [list(column) for column in zip(*map(spec.texts, _rows(batch)), strict=True)]
    truncation = "longest_first" if len(texts) == 2 else True
    encoded = tokenizer(*texts, truncation=truncation, max_length=limit, return_attention_mask=False)
    return {
        **encoded,
        "labels": batch[spec.label],
        "length": [len(ids) for ids in encoded["input_ids"]],
    }


def _prompt_response(
    spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths, batch: dict[str, list[Any]]
) -> dict[str, list[Any]]:
    """start + prompt + cue + response + end of sequence.

    What is too long: a summary is cut to its own length, and its prompt to the rest, so that training and generation
    see the same prompt. Of an instruction the prompt is cut first, down to `_PROMPT_SHARE` of the row.
    A prompt loses its end, the cue stays; a response that was cut gets no end-of-sequence token.
    """
    rows = _rows(batch)
    start, cue, end = _start(tokenizer), _ids(tokenizer, spec.cue), _end(tokenizer)
    prompts = tokenizer([spec.prompt(row) for row in rows], add_special_tokens=False, verbose=False).input_ids
    references = [spec.response(row) for row in rows]
    responses = tokenizer(references, add_special_tokens=False, verbose=False).input_ids
    encoded: dict[str, list[Any]] = {"input_ids": [], "context": [], "length": []}
    for prompt, response in zip(prompts, (response + end for response in responses), strict=True):
        if limits.max_target_len:
            context_limit = limits.max_token_len - limits.max_target_len
        else:
            context_limit = max(
                limits.max_token_len - len(response), int(_PROMPT_SHARE * limits.max_token_len), len(start + cue) + 1
            )
        context = start + prompt[: context_limit - len(start + cue)] + cue
        ids = context + response[: limits.max_target_len or limits.max_token_len - len(context)]
        encoded["input_ids"].append(ids)
        encoded["context"].append(len(context))
        encoded["length"].append(len(ids))
    if spec.task == "summarization":
        encoded["target"] = references
    return encoded


def _document(
    spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, batch: dict[str, list[str]]
) -> dict[str, list[list[int]]]:
    """The tokens of each row, and an end-of-sequence token after each document."""
    end = [] if spec.running_text else _end(tokenizer)
    encoded = tokenizer(batch[spec.columns[0]], add_special_tokens=False, verbose=False).input_ids
    return {"input_ids": [ids + end for ids in encoded]}


def _pack(start: list[int], end: list[int], size: int, documents: pa.Table) -> pa.Table:
    """All tokens of a split one after the other, cut into blocks of `size` tokens.

    Each block begins with `start`, and `end` follows the last token of the split. The short last block is kept if it
    has at least two tokens, one of them to predict.
    """
    column = documents["input_ids"].combine_chunks()
    tokens = np.append(column.flatten().to_numpy(), np.asarray(end, dtype=np.int64))
    room = size - len(start)
    blocks = [tokens[first : first + room] for first in range(0, len(tokens), room)]
    if blocks and len(start) + len(blocks[-1]) < 2:
        blocks.pop()
    ids = [np.append(np.asarray(start, dtype=np.int64), block) for block in blocks]
    return pa.table(
        {
            "input_ids": pa.array(ids, type=pa.list_(pa.int32())),
            "context": pa.array([0] * len(ids), type=pa.int32()),
            "length": pa.array([len(block) for block in ids], type=pa.int32()),
        }
    )
