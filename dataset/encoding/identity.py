"""Digests of what encoded rows depend on. They are equal in every process and on every machine."""

from __future__ import annotations

import json
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import tokenizers
import transformers
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from dataset.encoding.render import rendered
from dataset.reading.cache import digest
from dataset.spec import DatasetSpec

_PATHS = ("name_or_path", "_file", "_commit_hash", "cache_dir")  # endings of init options that name a place


def rows_digest(rows: Dataset, spec: DatasetSpec) -> str:
    """Return a digest of all texts that are encoded, after the entry's functions, and of the labels.

    It does not depend on how the rows are divided into Arrow chunks. Raises UserError in the same cases as
    `dataset.encoding.render.render`.
    """
    columns: dict[str, _Column] = {}
    for batch in rendered(rows, spec):
        for name in batch.column_names:
            columns.setdefault(name, _Column()).add(batch[name])
    return digest([[name, *column.digests()] for name, column in columns.items()])


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase, chat: bool = False) -> str:
    """Return a digest of everything in a tokenizer that changes its token ids, with its template for `chat`."""
    about = [
        type(tokenizer).__qualname__,
        {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        tokenizer.all_special_ids,
        list(tokenizer.model_input_names),
        tokenizer.truncation_side,
        bool(getattr(tokenizer, "split_special_tokens", False)),
        [transformers.__version__, tokenizers.__version__],
        *([tokenizer.chat_template] if chat else []),
    ]
    if not tokenizer.is_fast:
        options = {name: str(value) for name, value in tokenizer.init_kwargs.items() if not name.endswith(_PATHS)}
        return digest([*about, options, sorted(tokenizer.get_vocab().items()), _vocabulary_files(tokenizer)])
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    # Each call of a tokenizer sets these two.
    return digest([*about, {**document, "truncation": None, "padding": None}])


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return digests of the files in which a slow tokenizer saves its vocabulary, merges or model."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_vocabulary(folder)
        return [blake2b(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())]


class _Column:
    """Digests of the lengths and of the contents of a column."""

    def __init__(self) -> None:
        self._kinds: set[str] = set()
        self._lengths, self._contents = blake2b(digest_size=20), blake2b(digest_size=20)

    def add(self, values: pa.ChunkedArray) -> None:
        is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
        # Rows that were taken one by one are chunks of one row each.
        joined = (values.cast(pa.large_string()) if is_text else values).combine_chunks()
        for chunk in joined.chunks if isinstance(joined, pa.ChunkedArray) else [joined]:
            if is_text:
                self._add_texts(chunk)
            else:
                self._kinds.add(str(chunk.type))
                if pa.types.is_list(chunk.type):  # several labels a row
                    self._lengths.update(pa.compute.list_value_length(chunk).to_numpy().tobytes())
                    chunk = chunk.flatten()
                self._contents.update(np.ascontiguousarray(chunk.to_numpy(zero_copy_only=False)).tobytes())

    def _add_texts(self, texts: pa.Array) -> None:
        self._kinds.add("text")
        _, offsets, contents = texts.buffers()
        ends = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        self._lengths.update(np.diff(ends).tobytes())
        if contents is not None:
            self._contents.update(memoryview(contents)[ends[0] : ends[-1]])

    def digests(self) -> list[Any]:
        return [sorted(self._kinds), self._lengths.hexdigest(), self._contents.hexdigest()]
