"""Encodes rows as token ids, once. `dataset.reading.cache` keeps the result.

Every encoded row has `input_ids` and `length`, and further columns by kind of data:

- classification: `labels`, and `token_type_ids` if the tokenizer has them; the labels of multi-label classification
  are a 1 or 0 for each class;
- packed text: `context`, which is 0;
- prompt → response: `context`, the number of leading tokens that the loss skips, and for summaries `target`, the
  reference text;
- multiple choice: `context`, and the choices; see `dataset.encoding.questions`;
- conversations: `spans`, the starts and ends of the tokens that the loss is taken on.

The labels of causal models are the ids after the first `context` tokens, or inside the spans.
`dataset.batching.collate` makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from dataset.encoding.blocks import BLOCKS, blocks, stored
from dataset.encoding.chat import check_template, encode_chats
from dataset.encoding.questions import encode_questions
from dataset.encoding.render import render
from dataset.encoding.tokens import end_of, ids_of, only_token, start_of
from dataset.reading.cache import cached, digest
from dataset.spec import DatasetSpec
from heterolora.common.errors import UserError
from options.data import DataOptions

DEFAULT_LENGTH = 512  # upper limit of the default of `--max-token-len`
FEW_SHOT_LENGTH = 2048  # the same with `--few-shot`: the longest prompt of MMLU's authors
_TOKENS = Features({"input_ids": List(Value("int32"))})  # cannot be inferred if the first thousand rows are empty
_VERSION = 4  # raise it when the same rows and settings are encoded as other ids or columns
_NO_LIMIT = 10**9  # tokens
_ROWS_OF_PROCESS = 10_000  # fewer are encoded sooner than a process starts
_PROMPT_SHARE = 0.25  # share of the tokens that a long response leaves for its prompt

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Lengths:
    """The limits on the number of tokens."""

    max_token_len: int  # of a row, including special tokens
    max_target_len: int  # of a summary, including its end-of-sequence token; the prompt gets the rest; 0: no summaries


def lengths(
    spec: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    max_token_len: int | None = None,
    max_target_len: int = DataOptions.max_target_len,
    model_limit: int | None = None,
    default: int = DEFAULT_LENGTH,
) -> Lengths:
    """Return the limits to encode with.

    Args:
        spec: the data set.
        tokenizer: its `model_max_length` limits the row.
        max_token_len: `--max-token-len`. By default the limit of tokenizer and model, up to `default`.
        max_target_len: `--max-target-len`, for summarization.
        model_limit: number of positions of the model. `None`: no limit.

    Raises UserError if a value is more than the limit, or too small for any text.
    """
    limit = min(tokenizer.model_max_length, model_limit or tokenizer.model_max_length)
    total = min(limit, default) if max_token_len is None else max_token_len
    if total > limit:
        raise UserError(f"--max-token-len {total} is more than the model takes", f"at most {limit}")
    if spec.chat:
        check_template(tokenizer)
    target, content = 0, "text" if spec.prompt is None else "prompt"
    if spec.classifies:
        pair = len(spec.columns) == 2 or spec.texts is not None
        needed = tokenizer.num_special_tokens_to_add(pair=pair) + 1 + pair
    else:
        if spec.generates:
            target = max_target_len
            if target < 1:
                raise UserError(f"--max-target-len {target} leaves no room for a summary", "at least 1 is needed")
            content = f"prompt beside a summary of {target}"
        needed = len(start_of(tokenizer)) + len(ids_of(tokenizer, spec.cue)) + 1 + max(target, 1)
    if total < needed:
        raise UserError(f"--max-token-len {total} leaves no room for the {content}", f"at least {needed} are needed")
    return Lengths(total, target)


def encode(
    rows: Dataset,
    spec: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    limits: Lengths,
    key: str | None = None,
    processes: int = 1,
) -> Dataset:
    """Encode one split of `dataset.reading.source.Splits`, as the documentation of this module describes.

    With `key`, which comes from `cache_key`, the result is read from the cache, or kept there. Without it the result
    stays in memory. Up to `processes` of them encode a long split that is kept; the result does not depend on it.
    Raises UserError if there is no text to pack, if a function of the entry fails, or if the cache folder cannot be
    written.
    """
    spec = replace(spec, opened=None)  # functions that keep what they have read cannot go to other processes
    make = partial(_encoded, rows.with_format("arrow"), spec, tokenizer, limits, processes)
    return (make(None) if key is None else cached(key, make)).with_format(None)


def encode_some(rows: Dataset, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths) -> Dataset:
    """Encode some rows of a split, in memory and without a progress bar. Packed text may be too short for a block."""
    table = rows.with_format("arrow")[:]
    if not spec.packed:
        return Dataset.from_dict(_encoder(spec, tokenizer, limits)(table))
    ids = pa.chunked_array([_document(spec, tokenizer, table)["input_ids"]], BLOCKS.field("input_ids").type)
    return stored(_blocks_of(spec, tokenizer, limits, ids), BLOCKS)


def cache_key(rows_digest: str, spec: DatasetSpec, tokenizer_digest: str, limits: Lengths) -> str:
    """Return a digest of everything that the encoded rows depend on."""
    kind = [spec.task, spec.prompt is not None, spec.cue, spec.running_text, *(["chat"] if spec.chat else [])]
    kind += ["choices"] if spec.choices is not None else []
    return digest([_VERSION, rows_digest, tokenizer_digest, *kind, limits.max_token_len, limits.max_target_len])


def truncated(rows: Dataset, kept: np.ndarray, spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many rows lost tokens. `kept` (rows,) are the numbers of tokens that they have."""
    # One token more is enough for a conversation, each of whose turns costs as much as all that are before it.
    total = int(kept.max()) + 1 if spec.chat else 2 * _NO_LIMIT
    uncut = encode(rows, spec, tokenizer, Lengths(total, _NO_LIMIT if spec.generates else 0))
    return int((uncut.with_format("numpy")["length"][:] > kept).sum())


def _encoded(
    rows: Dataset,
    spec: DatasetSpec,
    tokenizer: PreTrainedTokenizerBase,
    limits: Lengths,
    processes: int,
    path: Path | None,
) -> Dataset:
    """Encode a split, in a file at `path` if it is given."""
    if not spec.packed:
        return _map(rows, _encoder(spec, tokenizer, limits), path, processes)
    scratch = path and path.with_suffix(".tokens")
    tokens = _map(rows, partial(_document, spec, tokenizer), scratch, processes, features=_TOKENS)
    made = stored(_blocks_of(spec, tokenizer, limits, tokens.data.column("input_ids")), BLOCKS, path)
    if scratch:
        scratch.unlink()
    if len(made) == 0:
        raise UserError(f"a split of data set '{spec.name}' holds no text", "give it at least two tokens")
    return made


def _encoder(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths) -> Callable[[pa.Table], Columns]:
    """Return what encodes some rows of a data set whose rows stay apart."""
    if spec.classifies:
        return partial(_classification, spec, tokenizer, limits.max_token_len)
    if spec.choices is not None:
        return partial(encode_questions, spec, tokenizer, limits.max_token_len)
    if spec.prompt is not None:
        return partial(_prompt_response, spec, tokenizer, limits)
    return partial(_chats, spec, tokenizer, limits.max_token_len)


def _map(
    rows: Dataset, function: Callable[[Any], Any], path: Path | None, processes: int = 1, **options: Any
) -> Dataset:
    """Return `rows.map(function, **options)`, in batches, in a file at `path` if it is given."""
    processes = min(processes, len(rows) // _ROWS_OF_PROCESS) if path else 1
    mapped = rows.map(
        function,
        batched=True,
        remove_columns=rows.column_names,
        keep_in_memory=path is None,
        load_from_cache_file=False,
        cache_file_name=path and str(path),
        new_fingerprint="encoded",  # otherwise `datasets` pickles the function to compute one
        num_proc=processes if processes > 1 else None,
        desc="encoding",
        **options,
    )
    if path is None or processes <= 1:
        return mapped
    parts, schema = [Path(part["filename"]) for part in mapped.cache_files], mapped.data.schema
    tables = (pa.Table.from_batches([batch]) for batch in mapped.data.table.to_batches())
    try:
        return stored(tables, schema, path)
    finally:
        for part in parts:
            part.unlink()


def _classification(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limit: int, rows: pa.Table) -> Columns:
    """Encode one text or a pair as the tokenizer joins them. Truncation cuts the longer text of a pair first.

    A row without tokens, which is an empty text, gets one token, because a model cannot read none.
    """
    batch = render(spec, rows).to_pydict()
    labels = {"labels": batch.pop("label")} if "label" in batch else {}  # rows to predict have none
    if labels and spec.multi_label:
        labels = {"labels": [np.isin(np.arange(spec.num_labels), ids).astype(np.float32) for ids in labels["labels"]]}
    encoded = tokenizer(*batch.values(), truncation=True, max_length=limit, return_attention_mask=False)
    for row, ids in enumerate(encoded["input_ids"]):
        if not ids:
            for name, values in encoded.items():
                values[row] = [only_token(tokenizer) if name == "input_ids" else 0]
    return {**encoded, **labels, "length": [len(ids) for ids in encoded["input_ids"]]}


def _prompt_response(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths, rows: pa.Table) -> Columns:
    """Encode start + prompt + cue + response + end of sequence.

    Too long rows are truncated. A summary is cut to its limit and its prompt to the rest, so training and generation
    see the same prompt. For other responses the prompt is cut first, down to `_PROMPT_SHARE` of the row. A prompt loses
    its end but not its cue. A truncated response has no end-of-sequence token.
    """
    texts = render(spec, rows).to_pydict()
    start, cue, end = start_of(tokenizer), ids_of(tokenizer, spec.cue), end_of(tokenizer)
    prompts, references = ids_of(tokenizer, texts["prompt"]), texts["response"]
    total, target, frame = limits.max_token_len, limits.max_target_len, len(start + cue)
    encoded: Columns = {"input_ids": [], "context": []}
    for prompt, response in zip(prompts, ids_of(tokenizer, references), strict=True):
        response = response + end
        room = total - target if target else max(total - len(response), int(_PROMPT_SHARE * total), frame + 1)
        context = start + prompt[: room - frame] + cue
        encoded["input_ids"].append(context + response[: target or total - len(context)])
        encoded["context"].append(len(context))
    encoded["length"] = [len(ids) for ids in encoded["input_ids"]]
    return encoded | ({"target": references} if spec.generates else {})


def _chats(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limit: int, rows: pa.Table) -> Columns:
    """Encode conversations; see `dataset.encoding.chat`."""
    pairs = encode_chats(tokenizer, limit, render(spec, rows)["text"].to_pylist())
    ids, spans = map(list, zip(*pairs, strict=True))
    return {"input_ids": ids, "spans": spans, "length": [*map(len, ids)]}


def _blocks_of(
    spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, limits: Lengths, documents: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Yield the tokens of all documents in blocks."""
    end = end_of(tokenizer) if spec.running_text else []
    return blocks(start_of(tokenizer), end, limits.max_token_len, documents)


def _document(spec: DatasetSpec, tokenizer: PreTrainedTokenizerBase, rows: pa.Table) -> Columns:
    """Encode each row, with an end-of-sequence token after each document."""
    end = [] if spec.running_text else end_of(tokenizer)
    return {"input_ids": [ids + end for ids in ids_of(tokenizer, render(spec, rows)["text"].to_pylist())]}
