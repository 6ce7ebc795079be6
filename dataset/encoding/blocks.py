"""Packed text: the tokens of all documents, one after another, in blocks of equal size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

BLOCKS = pa.schema({"input_ids": pa.list_(pa.int32()), "context": pa.int32(), "length": pa.int32()})


def stored(tables: Iterable[pa.Table], schema: pa.Schema, path: Path | None = None) -> Dataset:
    """Return the rows of all tables, from a file at `path` if it is given. The file is written table by table."""
    if path is None:
        return Dataset(pa.concat_tables([schema.empty_table(), *tables]))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for table in tables:
            stream.write_table(table)
    return Dataset.from_file(str(path))


def blocks(start: list[int], end: list[int], size: int, documents: pa.ChunkedArray) -> Iterator[pa.Table]:
    """Concatenate the tokens of a split and cuts them into blocks of `size` tokens. Yields the blocks of each chunk.

    Each block begins with `start`, and `end` follows the last token of the split. A short last block is kept if it has
    at least two tokens, so that there is one to predict.
    """
    room, rest = size - len(start), np.zeros(0, np.int32)
    for tokens in (*(chunk.flatten().to_numpy() for chunk in documents.chunks), np.asarray(end, np.int32)):
        tokens = np.concatenate([rest, tokens])
        full = len(tokens) // room * room
        if full:
            yield _packed(start, tokens[:full].reshape(-1, room))
        rest = tokens[full:]
    if len(rest) and len(start) + len(rest) >= 2:
        yield _packed(start, rest[None])


def _packed(start: list[int], rows: np.ndarray) -> pa.Table:
    """rows (blocks, tokens), each of which follows the tokens `start`."""
    ids = np.hstack([np.broadcast_to(np.asarray(start, np.int32), (len(rows), len(start))), rows])
    count, length = ids.shape
    column = pa.ListArray.from_arrays(np.arange(0, ids.size + 1, length, dtype=np.int32), ids.ravel())
    numbers = [np.full(count, number, np.int32) for number in (0, length)]
    return pa.table([column, *numbers], schema=BLOCKS)
