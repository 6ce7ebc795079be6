"""Instructions with their responses. The loss is taken on the response only. 5% of the rows are held out."""

from __future__ import annotations

from functools import partial
from operator import itemgetter

from dataset.spec import DatasetSpec, Row

_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request.\n\n### Instruction:\n"


def alpaca_prompt(row: Row) -> str:
    """Return the prompt of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca) up to its last heading."""
    if not row["input"]:
        return f"{_TASK}. {_REQUEST}{row['instruction']}"
    context = ", paired with an input that provides further context. "
    return f"{_TASK}{context}{_REQUEST}{row['instruction']}\n\n### Input:\n{row['input']}"


_alpaca = partial(
    DatasetSpec,
    task="causal_language_modeling",
    columns=("instruction", "input", "output"),
    prompt=alpaca_prompt,
    cue="\n\n### Response:\n",
    response=itemgetter("output"),
    metrics=("perplexity",),
    validation=(),
    test=None,
)

DATASETS = (
    _alpaca("alpaca", path="tatsu-lab/alpaca", summary="52,000 instructions, loss on the response"),
    _alpaca(
        "alpaca-cleaned", path="yahma/alpaca-cleaned", summary="alpaca with faulty rows corrected, loss on the response"
    ),
)
