"""What was understood of own data, in words: the columns, the splits, and one row as the model sees it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from datasets import Dataset

from dataset.batching.module import TextDataModule
from dataset.batching.targets import learned_spans
from dataset.spec import DatasetSpec

OPEN, CLOSE = "[[", "]]"  # around the part that the loss is taken on
_LONGEST = 700  # characters of a part
_MOST_LABELS = 12


def preview(data: TextDataModule, rows: Dataset, what: str) -> str:
    """Return some lines about the data set, and about its split `rows`, which is called `what`."""
    spec, splits = data.spec, data.splits
    more = "" if splits.stream is None else " at first, and the others as they are read"
    sizes = ", ".join(f"{size:,} {name}" for name, size in splits.sizes.items())
    lines = [
        f"data: {spec.name}: {_meaning(spec)}",
        f"rows: {sizes}{more}; {_lengths(data, rows, what)}",
        *_examples(data),
        f"the first {what} row, as the model sees it" + _legend(spec),
        *(f"  {line}" for line in _first_row(data, rows).splitlines()),
    ]
    return "\n".join(lines)


def _meaning(spec: DatasetSpec) -> str:
    columns = " and ".join(f"'{column}'" for column in spec.columns)
    if spec.choices is not None:
        return f"multiple choice from {columns}; '{spec.label}' says which choice is right"
    if spec.prompt is not None:
        what = "summarisation" if spec.generates else "language modelling"
        *prompts, response = (f"'{column}'" for column in spec.columns)
        return f"{what} of the response in {response} to the prompt in {' and '.join(prompts)}"
    if spec.chat:
        return f"language modelling of the conversations in {columns}, with the chat template of the tokenizer"
    if not spec.classifies:
        return f"language modelling of the text in {columns}"
    if spec.regression:
        return f"regression of the numbers in '{spec.label}' on the text in {columns}"
    names = ", ".join(spec.labels[:_MOST_LABELS]) + (", …" if len(spec.labels) > _MOST_LABELS else "")
    kind = "multi-label classification" if spec.multi_label else "classification"
    return f"{kind} of the text in {columns} by '{spec.label}', {spec.num_labels} labels: {names}"


def _lengths(data: TextDataModule, rows: Dataset, what: str) -> str:
    limit = data.limits.max_token_len
    if data.spec.packed:
        return f"the {what} rows fill {len(data.encoded(rows)):,} blocks of {limit} tokens"
    count = data.truncated(rows)
    found = f"{count:,} of {len(rows):,} {what} rows are truncated" if count else f"no {what} row is truncated"
    return f"{found} (--max-token-len {limit})"


def _examples(data: TextDataModule) -> list[str]:
    """Return a line about the examples of the rows that are measured and encoded."""
    if not data.few_shot:
        return []
    short = {
        name: data.lost_examples(rows) for name, rows in {**data.splits.validation, **data.splits.test}.items()
        if data.is_encoded(rows)
    }  # fmt: skip
    fewer = ", ".join(f"{count:,} {name} rows" for name, count in short.items() if count)
    limit = f"as many as there are and fit in --max-token-len {data.limits.max_token_len}"
    found = f"{fewer} have fewer ({limit})" if fewer else "no row has fewer"
    return [f"examples: {data.few_shot} before each measured question; {found}"] if short else []


def _legend(spec: DatasetSpec) -> str:
    return "" if spec.classifies else f" (the loss is taken on what is between {OPEN} and {CLOSE})"


def _first_row(data: TextDataModule, rows: Dataset) -> str:
    row = data.encoded(rows)[0]
    ids, spec = row["input_ids"], data.spec
    if spec.classifies:
        if spec.multi_label:
            return f"{_text(data, ids)}\nlabels: {', '.join(compress(spec.labels, row['labels']))}"
        label = row["labels"] if spec.regression else spec.labels[row["labels"]]
        return f"{_text(data, ids)}\nlabel: {label}"
    parts, position = [], 0
    for start, end in learned_spans(row):
        parts += [_text(data, ids[position:start]), OPEN, _text(data, ids[start:end]), CLOSE]
        position = end
    if spec.choices is not None:
        parts += ["\nchoices:", *(f" {_text(data, choice)!r}" for choice in row["choices"])]
    return "".join([*parts, _text(data, ids[position:])])


def _text(data: TextDataModule, ids: Sequence[int]) -> str:
    text = str(data.tokenizer.decode([*ids]))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
