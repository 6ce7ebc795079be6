"""Instructions with their responses: the loss is on the response only. There is no validation split: 5% is held out."""

from __future__ import annotations

from dataset.spec import DatasetSpec, Row

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}"
)


def alpaca_prompt(row: Row) -> str:
    """The prompt of Stanford Alpaca (github.com/tatsu-lab/stanford_alpaca), up to its last heading."""
    template = _WITH_INPUT if row["input"] else _WITHOUT_INPUT
    return template.format(instruction=row["instruction"], input=row["input"])


def alpaca_response(row: Row) -> str:
    return row["output"]


def _alpaca(name: str, path: str, summary: str) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        task="causal_language_modeling",
        path=path,
        columns=("instruction", "input", "output"),
        prompt=alpaca_prompt,
        cue="\n\n### Response:\n",
        response=alpaca_response,
        metrics=("perplexity",),
        validation=(),
        test=None,
        summary=summary,
    )


DATASETS = (
    _alpaca("alpaca", "tatsu-lab/alpaca", "52,000 instructions, loss on the response"),
    _alpaca("alpaca-cleaned", "yahma/alpaca-cleaned", "alpaca with its faulty rows mended, loss on the response"),
)
